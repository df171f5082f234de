# Another system by zig's compiler (zig.sh): macOS, which can be built but not run, and Linux with
# musl. HEARTH_ZIG_SYSTEM is zig's name of it, for example "aarch64-macos".
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES HEARTH_ZIG_SYSTEM)
if(HEARTH_ZIG_SYSTEM MATCHES "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "${HEARTH_ZIG_SYSTEM}")
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig.sh ${HEARTH_ZIG_SYSTEM})
set(CMAKE_AR ${CMAKE_CURRENT_LIST_DIR}/zig-ar.sh)
set(CMAKE_RANLIB ${CMAKE_CURRENT_LIST_DIR}/zig-ranlib.sh)
