"""Scripts behind the figures of README and docs; `bench/README.md` lists them."""
