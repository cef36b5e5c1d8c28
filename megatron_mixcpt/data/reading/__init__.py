"""From paths on the command line to records: files, formats, compression, presets, filters, embedded templates."""
