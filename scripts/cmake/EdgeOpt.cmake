# include(EdgeOpt) and edgeopt_add_model(NAME RECIPE TARGET): builds a verified bundle with the rest of the project.
#
#   list(APPEND CMAKE_MODULE_PATH /path/to/edgeopt/scripts/cmake)
#   include(EdgeOpt)
#   edgeopt_add_model(detector models/detector.toml arm64 [ARGUMENTS --set prune.pruning_ratio=0.3])
#   add_dependencies(firmware detector)
#
# RECIPE is a file or the name of a built-in recipe; RECIPE_NAME says its `name`, if that is not the file's.
# Afterwards the target `detector` builds the bundle and `detector_BUNDLE` is its folder. The bundle is built again
# exactly when the recipe, the weights, the data or edgeopt's code changed (edgeopt writes a depfile), and what depends
# on bundle.json only if the bundle came out different. A verdict of no stops the build.
#
# EDGEOPT_COMMAND is the program, a list; by default `edgeopt` on PATH.

cmake_minimum_required(VERSION 3.20)
set(EDGEOPT_COMMAND "edgeopt" CACHE STRING "the edgeopt program, as a list")

function(edgeopt_add_model name recipe target)
  cmake_parse_arguments(PARSE_ARGV 3 option "" "RECIPE_NAME" "ARGUMENTS")
  get_filename_component(recipe_file "${recipe}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
  if(EXISTS "${recipe_file}")
    set(recipe "${recipe_file}")
    set(source MAIN_DEPENDENCY "${recipe_file}")
  endif()
  if(NOT option_RECIPE_NAME)
    get_filename_component(option_RECIPE_NAME "${recipe}" NAME_WE)
  endif()
  set(out "${CMAKE_CURRENT_BINARY_DIR}/${name}")
  set(bundle "${out}/${option_RECIPE_NAME}/${target}")
  add_custom_command(
    OUTPUT "${bundle}/bundle.json"
    COMMAND ${EDGEOPT_COMMAND} build "${recipe}" --target "${target}" --out "${out}" --quiet
            --depfile "${out}.d" ${option_ARGUMENTS}
    ${source}
    DEPFILE "${out}.d"
    COMMENT "edgeopt: ${option_RECIPE_NAME} for ${target}"
    VERBATIM)
  add_custom_target(${name} ALL DEPENDS "${bundle}/bundle.json")
  set(${name}_BUNDLE "${bundle}" PARENT_SCOPE)
endfunction()
