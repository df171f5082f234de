#!/usr/bin/env bash
# prepare.sh FOLDER: Hearth as a 64-bit Arm machine has it, in FOLDER, to be run by qemu-user. Debian's
# Python and its libraries come as packages of apt's sources, and are unpacked, not installed; what
# Hearth depends on comes as wheels. The core is cross-compiled. FOLDER/python runs that Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD folder=$(realpath -m "$1") here=$PWD/.venv/bin
mkdir -p "$folder"

if [[ ! -x $folder/root/usr/bin/python3 ]]; then
  mkdir -p "$folder"/apt/lists/partial "$folder"/apt/archives/partial
  : >"$folder/apt/status"
  cat >"$folder/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State "$folder/apt";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
Debug::NoLocking "1";
END
  export APT_CONFIG=$folder/apt.conf
  apt-get update -qq
  apt-get install -qq -y --download-only --no-install-recommends python3-minimal libpython3-stdlib \
    libpython3-dev libstdc++6
  for package in "$folder"/apt/archives/*.deb; do dpkg-deb -x "$package" "$folder/root"; done
fi
version=$(basename "$(readlink "$folder/root/usr/bin/python3")")

cat >"$folder/python" <<END
#!/bin/sh
export PYTHONPATH=$folder/packages:$folder/site PYTHONDONTWRITEBYTECODE=1
exec qemu-aarch64-static -L $folder/root $folder/root/usr/bin/$version "\$@"
END
chmod +x "$folder/python"

if [[ ! -d $folder/site/numpy ]]; then
  "$here/python" -c 'import tomllib
for file in ("pyproject.toml", "packaging/hearth-client/pyproject.toml"):
    for name in tomllib.load(open(file, "rb"))["project"]["dependencies"]:
        if not name.startswith("hearth-client"): print(name)' >"$folder/requirements.txt"
  platforms=()
  for glibc in 2014 _2_17 _2_24 _2_26 _2_27 _2_28 _2_31 _2_34; do
    platforms+=(--platform "manylinux${glibc}_aarch64")
  done
  "$here/pip" install -q --target "$folder/site" --only-binary=:all: --implementation cp \
    --python-version "${version#python}" "${platforms[@]}" -r "$folder/requirements.txt"
fi

PATH="$here:$PATH" cmake --preset arm64-python \
  -DCMAKE_CXX_FLAGS="-idirafter $folder/root/usr/include" \
  -DPython_EXECUTABLE="$here/python" -DPython_INCLUDE_DIR="$folder/root/usr/include/$version" \
  -Dpybind11_DIR="$("$here/python" -m pybind11 --cmakedir)"
PATH="$here:$PATH" cmake --build --preset arm64-python

mkdir -p "$folder/packages/hearth"
ln -sfn "$("$here/python" -c 'import hearth.v1; print(hearth.v1.__path__[0])')" "$folder/packages/hearth/v1"
for part in cli client converter models services/common services/root services/worker; do
  ln -sfn "$top/$part" "$folder/packages/hearth/$(basename "$part")"
done
cp build/native-arm64-python/native/_native.so "$folder/packages/hearth/"
