"""The shipped ways onto a cluster: the Slurm script's logic with stubs for Slurm, the Kubernetes manifest's fields."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

# Stand in for Slurm on two nodes: srun runs the command once for each, as Slurm does, with the node's number.
STUBS = {
    "scontrol": 'echo "node7"; echo "node9"',
    "srun": 'shift; for node in 0 1; do SLURM_NODEID="$node" "$@" || exit; done',
    "torchrun": 'echo "torchrun $*"',
}
# Fields of kubeflow.org/v1 (pkg/apis/kubeflow.org/v1/pytorch_types.go and common_types.go of the training operator).
JOB_FIELDS = {"runPolicy", "elasticPolicy", "pytorchReplicaSpecs", "nprocPerNode"}
ELASTIC_FIELDS = {
    "minReplicas",
    "maxReplicas",
    "rdzvBackend",
    "rdzvPort",
    "rdzvHost",
    "rdzvId",
    "rdzvConf",
    "maxRestarts",
}
POLICY_FIELDS = {
    "cleanPodPolicy",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "backoffLimit",
    "schedulingPolicy",
}


@pytest.fixture
def slurm(tmp_path: Path, repository: Path) -> dict[str, str]:
    """The environment of a batch script on two nodes, with a copy of the examples that finds the stub of torchrun."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "submitted").mkdir()
    (tmp_path / "submitted" / "examples").symlink_to(repository / "examples")
    (tmp_path / "submitted/.venv/bin").mkdir(parents=True)
    (tmp_path / "submitted/.venv/bin/torchrun").symlink_to(tmp_path / "torchrun")
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path / "submitted"),
        "SLURM_JOB_NODELIST": "node[7,9]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "123456",
        "SLURM_GPUS_ON_NODE": "4",
    }


def test_slurm_starts_one_torchrun_a_node(slurm: dict[str, str], repository: Path) -> None:
    script = repository / "examples/slurm/pretrain_mixcpt.sbatch"
    command = ["bash", str(script), "examples/pretrain_mixcpt_llama3.sh", "--train-iters", "7"]
    result = subprocess.run(command, env=slurm, capture_output=True, text=True, check=True)
    started = [line.split() for line in result.stdout.splitlines() if line.startswith("torchrun ")]
    assert len(started) == 2
    for node, words in enumerate(started):
        flags = dict(zip(words[1:-3:2], words[2:-3:2], strict=True))
        assert flags["--nproc-per-node"] == "4" and flags["--nnodes"] == "2" and flags["--node-rank"] == str(node)
        assert flags["--master-addr"] == "node7" and flags["--master-port"] == str(20000 + 123456 % 20000)
        assert words[-3].endswith("examples/pretrain_mixcpt_llama3.sh") and words[-2:] == ["--train-iters", "7"]


def test_slurm_runs_in_a_container(slurm: dict[str, str], repository: Path, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/bash\necho "srun $*"\n')
    script = repository / "examples/slurm/pretrain_mixcpt.sbatch"
    containers = {
        "SRUN_FLAGS": "--container-image=/shared/mixcpt.sqsh",
        "CONTAINER_EXEC": "apptainer exec --nv mixcpt.sif",
    }
    command = ["bash", str(script), "examples/pretrain_mixcpt_llama3.sh"]
    result = subprocess.run(command, env=slurm | containers, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(
        "srun --kill-on-bad-exit=1 --container-image=/shared/mixcpt.sqsh apptainer exec --nv mixcpt.sif bash -c "
    )


def test_slurm_without_an_example_says_so(slurm: dict[str, str], repository: Path) -> None:
    command = ["bash", str(repository / "examples/slurm/pretrain_mixcpt.sbatch")]
    result = subprocess.run(command, env=slurm, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stderr.startswith("error: name the example to run")


def test_kubernetes_manifest_is_a_pytorchjob(repository: Path) -> None:
    job = yaml.safe_load((repository / "examples/kubernetes/pretrain_mixcpt.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]
    assert spec.keys() <= JOB_FIELDS and spec["elasticPolicy"].keys() <= ELASTIC_FIELDS
    assert spec["runPolicy"].keys() <= POLICY_FIELDS and spec["runPolicy"]["cleanPodPolicy"] == "None"
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert worker.keys() <= {"replicas", "template", "restartPolicy"} and worker["restartPolicy"] == "OnFailure"
    assert worker["replicas"] == spec["elasticPolicy"]["minReplicas"] == spec["elasticPolicy"]["maxReplicas"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert spec["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert (repository / container["command"][-1]).is_file()
    assert {"HF_MODEL", "MIXTURE", "SAVE"} <= {variable["name"] for variable in container["env"]}
