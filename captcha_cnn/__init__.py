"""The machinery behind the scripts. Its modules import only `config` and each other."""

VERSION = "2.0"
