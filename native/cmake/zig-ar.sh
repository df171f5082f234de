#!/usr/bin/env bash
# `zig ar`: archives of other systems have indexes of their own.
exec python -m ziglang ar "$@"
