# Cross compiling the kernels for 64-bit Arm on Linux, such as Jetson:
#
#   cmake -S cpp_ext -B build/aarch64 --toolchain cpp_ext/aarch64.cmake -DFLAWSCOPE_PYTHON=OFF -DFLAWSCOPE_CUDA=OFF
#
# Needs a cross compiler (Debian: g++-aarch64-linux-gnu), and qemu-user to run what comes out. With CUDA the toolkit must
# have the libraries of the other processor (NVIDIA's cuda-cross packages) and CMAKE_CUDA_ARCHITECTURES be set: 87 for
# Orin, 110 for Thor. See docs/devices.md.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(FLAWSCOPE_CROSS aarch64-linux-gnu CACHE STRING "What the names of the cross compiler's programs begin with")
set(CMAKE_C_COMPILER ${FLAWSCOPE_CROSS}-gcc)
set(CMAKE_CXX_COMPILER ${FLAWSCOPE_CROSS}-g++)
set(CMAKE_CUDA_HOST_COMPILER ${FLAWSCOPE_CROSS}-g++)

# A project that only tries the compiler reads this file anew, without the cache.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FLAWSCOPE_CROSS)

find_program(FLAWSCOPE_QEMU qemu-aarch64)
if(FLAWSCOPE_QEMU)
    # -L: where the cross compiler's packages put the loader and libraries of the other processor.
    set(CMAKE_CROSSCOMPILING_EMULATOR ${FLAWSCOPE_QEMU} -L /usr/${FLAWSCOPE_CROSS})
endif()

# Programs of this machine, headers and libraries of the other.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
