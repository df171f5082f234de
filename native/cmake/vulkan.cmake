# The Vulkan backend, where its headers and glslc are found. A build without them has no GPUs.
# (Also of the host's: headers and shaders are the same for all systems. So where there is no glslc, as
# where wheels are built, those of `make vulkan-shaders` serve.)
set(prebuilt ${CMAKE_SOURCE_DIR}/build/vulkan)
find_path(HEARTH_VULKAN_INCLUDE vulkan/vulkan.h
  PATHS /usr/local/include /usr/include ${prebuilt}/include NO_CMAKE_FIND_ROOT_PATH)
find_program(HEARTH_GLSLC glslc)
if(HEARTH_GLSLC OR NOT EXISTS ${prebuilt}/shaders)
  set(prebuilt "")
endif()
option(HEARTH_VULKAN "Build the Vulkan backend where its headers and glslc are there" ON)
if(NOT HEARTH_VULKAN OR NOT HEARTH_VULKAN_INCLUDE OR NOT (HEARTH_GLSLC OR prebuilt))
  message(STATUS "hearth: without Vulkan (headers: ${HEARTH_VULKAN_INCLUDE}, glslc: ${HEARTH_GLSLC})")
  target_sources(hearth_core PRIVATE src/vulkan/absent.cpp)
  return()
endif()

# The host's other headers are not those of the system that is built for.
set(vulkan_include ${HEARTH_VULKAN_INCLUDE})
if(CMAKE_CROSSCOMPILING)
  set(vulkan_include ${CMAKE_CURRENT_BINARY_DIR}/vulkan-headers)
  file(MAKE_DIRECTORY ${vulkan_include})
  foreach(folder vulkan vk_video)
    if(EXISTS ${HEARTH_VULKAN_INCLUDE}/${folder})
      file(CREATE_LINK ${HEARTH_VULKAN_INCLUDE}/${folder} ${vulkan_include}/${folder} SYMBOLIC)
    endif()
  endforeach()
endif()

set(shader_sources ${CMAKE_CURRENT_SOURCE_DIR}/src/vulkan/shaders)
set(shader_output ${CMAKE_CURRENT_BINARY_DIR}/shaders)
file(GLOB shader_includes CONFIGURE_DEPENDS ${shader_sources}/*.glsl)
file(MAKE_DIRECTORY ${shader_output})
set(shader_code "#include \"vulkan/shaders.h\"\n\nnamespace hearth::vulkan {\nnamespace {\n")
set(shader_table "")
set(shader_numbers)

# Compiles one shader to numbers, and adds it to the table: in the order of hearth::vulkan::Shader.
function(hearth_shader source output)
  if(prebuilt)
    configure_file(${prebuilt}/shaders/${output}.inc ${shader_output}/${output}.inc COPYONLY)
  else()
    add_custom_command(OUTPUT ${shader_output}/${output}.inc
      COMMAND ${HEARTH_GLSLC} --target-env=vulkan1.2 -O -mfmt=c -Werror ${ARGN} -I${shader_sources}
              ${shader_sources}/${source}.comp -o ${shader_output}/${output}.inc
      DEPENDS ${shader_sources}/${source}.comp ${shader_includes} VERBATIM)
  endif()
  set(shader_numbers ${shader_numbers} ${shader_output}/${output}.inc PARENT_SCOPE)
  set(shader_code "${shader_code}constexpr uint32_t k_${output}[] =\n#include \"${output}.inc\"\n;\n"
      PARENT_SCOPE)
  set(shader_table "${shader_table}    k_${output},\n" PARENT_SCOPE)
endfunction()

foreach(shader norm activate rope attend logits squares latent_store route tiles combine delta_inputs
        delta_rule delta_keep delta_finish join)
  hearth_shader(${shader} ${shader})
endforeach()
foreach(shader products grouped_products)
  foreach(type RANGE 15)
    hearth_shader(${shader} ${shader}_${type} -DTYPE=${type})
  endforeach()
endforeach()
foreach(shader products grouped_products)
  foreach(type RANGE 2 14)
    hearth_shader(${shader} ${shader}_dot_${type} -DTYPE=${type} -DINTEGER_DOT)
  endforeach()
endforeach()
file(CONFIGURE OUTPUT ${shader_output}/shaders.cpp CONTENT "${shader_code}
constexpr std::span<const uint32_t> kCode[] = {
${shader_table}};
static_assert(std::size(kCode) == static_cast<size_t>(Shader::end_of_products) + 2 * kBlockTypes);

}  // namespace

std::span<const uint32_t> code_of(Shader shader) { return kCode[static_cast<size_t>(shader)]; }

}  // namespace hearth::vulkan
")
add_custom_target(hearth_shaders DEPENDS ${shader_numbers})
set_source_files_properties(${shader_output}/shaders.cpp PROPERTIES OBJECT_DEPENDS
  "${shader_numbers}")
target_sources(hearth_core PRIVATE
  src/vulkan/backend.cpp
  src/vulkan/device.cpp
  src/vulkan/pages.cpp
  src/vulkan/host_router.cpp
  src/vulkan/recorder.cpp
  src/vulkan/recorder_attention.cpp
  src/vulkan/recorder_experts.cpp
  src/vulkan/recorder_inputs.cpp
  src/vulkan/recorder_norms.cpp
  src/vulkan/recorder_products.cpp
  src/vulkan/recorder_states.cpp
  src/vulkan/state_slots.cpp
  src/vulkan/states.cpp
  src/vulkan/work.cpp
  ${shader_output}/shaders.cpp)
target_include_directories(hearth_core SYSTEM PRIVATE ${vulkan_include})
target_compile_definitions(hearth_core PRIVATE HEARTH_HAVE_VULKAN)
