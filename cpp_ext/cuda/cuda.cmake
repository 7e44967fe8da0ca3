# The CUDA kernels, or the functions that say that there are none. Included once the target flawscope_kernels exists.
set(FLAWSCOPE_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (where nvcc is found and works), ON or OFF")
set_property(CACHE FLAWSCOPE_CUDA PROPERTY STRINGS AUTO ON OFF)

# Put into `missing` why CUDA cannot be built; nothing where it can.
function(find_cuda missing)
    include(CheckLanguage)
    check_language(CUDA)  # tries it on a project of its own: a broken nvcc must not break an AUTO build
    if(NOT CMAKE_CUDA_COMPILER)
        set(${missing} "no nvcc that works was found" PARENT_SCOPE)
        return()
    endif()
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE text ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" text "${text}")
    set(FLAWSCOPE_NVCC_VERSION "${CMAKE_MATCH_1}" PARENT_SCOPE)
    if(CMAKE_MATCH_1 VERSION_LESS 11.8)
        set(${missing} "nvcc ${CMAKE_MATCH_1} is older than 11.8, which first launches with a status of its own"
            PARENT_SCOPE)
    endif()
endfunction()

set(cuda_missing "")
if(FLAWSCOPE_CUDA OR FLAWSCOPE_CUDA STREQUAL "AUTO")
    find_cuda(cuda_missing)
    if(cuda_missing AND NOT FLAWSCOPE_CUDA STREQUAL "AUTO")
        message(FATAL_ERROR "FLAWSCOPE_CUDA is ON, but ${cuda_missing}.")
    endif()
else()
    set(cuda_missing "FLAWSCOPE_CUDA is ${FLAWSCOPE_CUDA}")
endif()

if(cuda_missing)
    message(STATUS "CUDA kernels: left out, ${cuda_missing}")
    target_sources(flawscope_kernels PRIVATE cuda/absent.cpp)
    return()
endif()

# Machine code for each, PTX of the last for what comes later, and of 9.0 for what has no machine code between: 11.0
# (Jetson Thor) takes it. Before enable_language, which has a default as well.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    if(FLAWSCOPE_NVCC_VERSION VERSION_LESS 12.8)
        set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 87-real 89-real 90)
    else()
        set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 87-real 89-real 90-real 90-virtual 100-real 120)
    endif()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

add_library(flawscope_cuda OBJECT cuda/arrays.cu cuda/diffusion.cu cuda/finish.cu cuda/interface.cu cuda/kcenter.cu
                                  cuda/mahalanobis.cu cuda/pack.cu cuda/plan.cu cuda/search.cu cuda/window.cu)
target_include_directories(flawscope_cuda PRIVATE include cuda)
# The flags of the folder are those of the C++ compiler; nvcc knows none of them.
set_target_properties(flawscope_cuda PROPERTIES COMPILE_OPTIONS "" CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                                                CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
# No -use_fast_math: it takes subnormal numbers for 0 and NaN for a number, and rows near zero would all be alike.
target_compile_options(flawscope_cuda PRIVATE -Xcompiler=-Wall,-Wextra)
target_sources(flawscope_kernels PRIVATE $<TARGET_OBJECTS:flawscope_cuda>)
target_link_libraries(flawscope_kernels PRIVATE CUDA::cudart_static)
# What comes out of the static runtime stays inside: the process may have another version of it.
target_link_options(flawscope_kernels PRIVATE LINKER:--exclude-libs,ALL)
