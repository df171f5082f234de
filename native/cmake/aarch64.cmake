# 64-bit Arm Linux with Debian's cross compiler; what it builds is run by qemu-user, as the CPU that
# the environment variable QEMU_CPU names (the presets in CMakePresets.json set it).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static)
# Static, so that the emulator needs no Arm libraries.
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
