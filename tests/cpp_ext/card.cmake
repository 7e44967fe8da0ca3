# Programs that run the checks of the emulated kernels on a GPU; tools/gpu_check.py builds them.
file(GLOB card_checks CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/cuda_emulated*.cpp)
foreach(source ${card_checks})
    get_filename_component(name ${source} NAME_WE)
    set_source_files_properties(${source} PROPERTIES LANGUAGE CUDA)
    add_executable(card_${name} ${source} $<TARGET_OBJECTS:flawscope_cuda>)
    target_include_directories(card_${name} PRIVATE include src cuda)
    set_target_properties(card_${name} PROPERTIES COMPILE_OPTIONS "" CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                                                  CUDA_RUNTIME_LIBRARY Static)
    target_link_libraries(card_${name} PRIVATE CUDA::cudart_static)
endforeach()
