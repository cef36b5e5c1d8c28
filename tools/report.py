"""One page about several runs: who learned the domain, who forgot the rest, and what was set differently.

    python tools/report.py outputs/reproduce --domain French --output outputs/report     # finds what is in the folder
    python tools/report.py --run mixcpt=checkpoints/mixcpt --evaluation base=eval/base mixcpt=eval/mixcpt \\
        --base base --domain medicine --scores mixcpt=scores.jsonl --output report

Writes DIR/report.html, a single file that needs nothing else, and each picture as PNG. Names that end in a seed
(mixcpt/seed-1, mixcpt/seed-2) are one method: mean and spread. More in docs/report.md.
"""

from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.report.arguments import DEFAULT_DOMAIN, build_parser, choose_base, gather, missing
from megatron_mixcpt.report.page import PAGE_NAME, write_page


@exit_on_user_error
def main() -> None:
    """Parse the flags, read, write the page, say where it is."""
    arguments = build_parser(__doc__).parse_args()
    inputs, problems = gather(arguments)
    base = choose_base(inputs, arguments.base)
    domain = arguments.domain or DEFAULT_DOMAIN
    notes = [*missing(inputs, base, domain), *(f"Left out: {problem}" for problem in problems)]
    number = write_page(inputs, arguments.output, title=arguments.title, base=base, domain=domain, notes=notes)
    print(f"{len(inputs.runs)} run(s), {len(inputs.evaluations)} evaluation(s), {number} picture(s)")
    print("\n".join(notes))
    print(f"page: {arguments.output / PAGE_NAME}")


if __name__ == "__main__":
    main()
