# Toolchain file: a build for 64-bit ARM on another machine, with Debian's cross compiler; its tests run under qemu-user.
#   cmake -S . -B build-aarch64 -G Ninja --toolchain cmake/aarch64.cmake -DSLUICE_CUDA=OFF
# The libraries are those of Debian's arm64 packages, installed beside the machine's own (dpkg --add-architecture
# arm64) or unpacked into a folder: -DSL_AARCH64_ROOT=FOLDER. There are no kernels for ARM's vector instructions yet:
# the reference kernels serve.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SL_AARCH64_ROOT)
set(CMAKE_FIND_ROOT_PATH ${SL_AARCH64_ROOT} /)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(libraries /usr/lib/aarch64-linux-gnu)
if(SL_AARCH64_ROOT)
  set(libraries ${SL_AARCH64_ROOT}/usr/lib/aarch64-linux-gnu)
  set(CMAKE_C_STANDARD_INCLUDE_DIRECTORIES ${SL_AARCH64_ROOT}/usr/include)
  set(CMAKE_EXE_LINKER_FLAGS_INIT -Wl,-rpath-link,${libraries})
endif()
# qemu-user looks for the loader and the C library below -L.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=${libraries})
