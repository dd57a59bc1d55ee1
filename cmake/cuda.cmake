# The CUDA backend: compiled by nvcc where there is one, or for the test device (tests/device), which runs the same sources
# on the CPU, or left out. Sets SL_CUDA_OBJECTS; everything of ours sees SL_CUDA=1 if the backend is in.
set(SLUICE_CUDA AUTO CACHE STRING "CUDA backend: AUTO (if nvcc is found), ON or OFF")
set(SLUICE_CUDA_ARCHITECTURES "" CACHE STRING "GPU architectures (80-real;90-real;100, or what nvcc has of them)")
option(SLUICE_TEST_DEVICE "the CUDA backend on a test device that runs on the CPU: for tests only" OFF)
option(SL_RACES "on the test device: look for races between a kernel's threads" OFF)
option(SLUICE_CUDA_REPORT "let nvcc print registers and spills (tools/bench/registers reads them)" OFF)
add_library(sl_cuda_runtime INTERFACE)
set(SL_CUDA_OBJECTS "")
set(SL_CUDA_BUILT OFF)

set(cuda_sources
  gemm/gemv.cu gemm/gemv_mma.cu gemm/gemm.cu gemm/gemm_mma.cu gemm/store.cu quant/embed.cu quant/expand.cu
  quant/random.cu bridge/block_linear.cu
  norm/rmsnorm.cu norm/route_score.cu norm/route_split.cu elementwise/elementwise.cu conv/conv_gate.cu conv/shift.cu
  scan/scan_s6.cu scan/scan_s6_chunk.cu scan/scan_s4d.cu bridge/bridge.cu
  rope/rope.cu attention/attention.cu attention/attention_mma.cu attention/attention_decode.cu attention/kv_store.cu
  sample/sample.cu)
list(TRANSFORM cuda_sources PREPEND ${CMAKE_SOURCE_DIR}/kernels/)

if(SLUICE_TEST_DEVICE)
  enable_language(CXX)
  message(STATUS "CUDA backend: on the test device (for tests only)")
elseif(NOT SLUICE_CUDA STREQUAL OFF)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES ${SLUICE_CUDA_ARCHITECTURES})
    if(NOT SLUICE_CUDA_ARCHITECTURES) # the last one also as PTX
      execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE SL_NVCC)
      string(REGEX MATCH "release ([0-9.]+)" SL_NVCC "${SL_NVCC}")
      if(CMAKE_MATCH_1 VERSION_LESS 12.8)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
      else()
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
      endif()
    endif()
    set(CMAKE_CUDA_STANDARD 17)
    enable_language(CUDA)
    # The host side of nvcc's launches guards statics as C++ does: a few functions of libstdc++ and libgcc, linked from
    # their archives where they exist, so that the program needs no C++ run time where it is installed.
    execute_process(COMMAND ${CMAKE_C_COMPILER} -print-file-name=libstdc++.a OUTPUT_VARIABLE SL_STDCXX
      OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(EXISTS "${SL_STDCXX}")
      list(TRANSFORM CMAKE_CUDA_IMPLICIT_LINK_LIBRARIES REPLACE "^stdc\\+\\+$" "-l:libstdc++.a")
      set(SL_CUDA_LINK_OPTIONS -static-libgcc -Wl,--exclude-libs,libstdc++.a)
    endif()
    find_package(CUDAToolkit REQUIRED)
    message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
  elseif(SLUICE_CUDA STREQUAL ON)
    message(FATAL_ERROR "SLUICE_CUDA=ON, but nvcc was not found (set CUDACXX to its path)")
  else()
    message(STATUS "CUDA backend: left out, nvcc was not found (set CUDACXX to its path)")
  endif()
else()
  message(STATUS "CUDA backend: left out (SLUICE_CUDA=OFF)")
endif()

# An object library of .cu files, by whichever compiler is meant for them.
function(sl_cuda_target name)
  add_library(${name} OBJECT)
  target_link_libraries(${name} PRIVATE sl_cuda_runtime)
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  if(SLUICE_TEST_DEVICE)
    sl_device_sources(${name} ${ARGN})
    sl_watch_races(${name})
    target_compile_options(${name} PRIVATE -ffp-contract=off)
  else()
    target_sources(${name} PRIVATE ${ARGN})
    target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.4)
      target_compile_options(${name} PRIVATE --compress-mode=size)
    endif()
    target_compile_options(${name} PRIVATE $<$<BOOL:${SLUICE_CUDA_REPORT}>:-Xptxas=-v> -Xcompiler=-Wall,-Wextra,-fvisibility=hidden
      $<$<BOOL:${SL_WERROR}>:-Werror=all-warnings>)
  endif()
endfunction()

if(SLUICE_TEST_DEVICE OR CMAKE_CUDA_COMPILER)
  set(SL_CUDA_BUILT ON)
  target_compile_definitions(sl_flags INTERFACE SL_CUDA=1)
  if(SLUICE_TEST_DEVICE)
    target_compile_definitions(sl_flags INTERFACE SL_TEST_DEVICE=1)
    add_subdirectory(tests/device)
    target_link_libraries(sl_cuda_runtime INTERFACE sl_test_device_flags)
    set(SL_CUDA_LIBRARIES sl_test_device stdc++)
  else()
    target_include_directories(sl_cuda_runtime SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
    set(SL_CUDA_LIBRARIES CUDA::cudart_static ${SL_CUDA_LINK_OPTIONS})
  endif()
  sl_cuda_target(sl_cuda_kernels ${cuda_sources})
  set(SL_CUDA_OBJECTS $<TARGET_OBJECTS:sl_cuda_kernels>)
  target_link_libraries(sl_core PRIVATE sl_cuda_runtime)
endif()
