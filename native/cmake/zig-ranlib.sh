#!/usr/bin/env bash
exec python -m ziglang ranlib "$@"
