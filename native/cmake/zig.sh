#!/usr/bin/env bash
# zig.sh SYSTEM OPTION...: `zig c++`, which has other systems' headers and libraries, as a compiler.
# It takes the features of a CPU by -mcpu only. `zig` is PyPI's package ziglang.
set -euo pipefail
system=$1 options=()
for option in "${@:2}"; do
  case $option in
    -march=armv8.2-a+*) option=-mcpu=generic+${option#-march=armv8.2-a+} ;;
  esac
  options+=("$option")
done
exec python -m ziglang c++ -target "$system" "${options[@]}"
