"""The commands of the command line, by what they are for; `edge_svd.cli` puts them together."""
