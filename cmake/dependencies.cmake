# Libraries, static where a static library exists, so that the binary stays one file.
find_package(OpenMP REQUIRED COMPONENTS C)

function(sl_find_library out name)
  find_library(${out} NAMES lib${name}.a ${name})
  if(NOT ${out})
    message(FATAL_ERROR "library ${name} not found; tools/quickstart installs what is missing")
  endif()
endfunction()

sl_find_library(SL_JANSSON jansson)
sl_find_library(SL_PCRE2 pcre2-8)
sl_find_library(SL_UTF8PROC utf8proc)
sl_find_library(SL_XXHASH xxhash)
add_library(sl_dependencies INTERFACE)
target_compile_definitions(sl_dependencies INTERFACE UTF8PROC_STATIC PCRE2_STATIC)
target_link_libraries(sl_dependencies INTERFACE ${SL_JANSSON} ${SL_PCRE2} ${SL_UTF8PROC} ${SL_XXHASH} OpenMP::OpenMP_C m)

# Line editing is needed by the program only. Static libedit needs its own helpers.
sl_find_library(SL_EDIT edit)
add_library(sl_terminal INTERFACE)
target_link_libraries(sl_terminal INTERFACE ${SL_EDIT})
foreach(name bsd md tinfo)
  find_library(SL_EDIT_${name} NAMES lib${name}.a ${name})
  if(SL_EDIT_${name})
    target_link_libraries(sl_terminal INTERFACE ${SL_EDIT_${name}})
  endif()
endforeach()
