# Installs the library below WORK_DIR, then configures, builds and runs the project in CONSUMER_DIR
# against it.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "'${command}' failed with ${status}:\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${WORK_DIR}")
run("${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${WORK_DIR}/prefix" --config "${CONFIG}")
set(flags "")
if(SANITIZE)
  set(flags "-fsanitize=${SANITIZE}")  # the library carries calls into the sanitizers' runtimes
endif()
run("${CMAKE_COMMAND}" -S "${CONSUMER_DIR}" -B "${WORK_DIR}/build" -G "${GENERATOR}"
    "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" "-DCMAKE_CXX_COMPILER=${CXX}" "-DCMAKE_CXX_FLAGS=${flags}"
    "-DCMAKE_BUILD_TYPE=${CONFIG}" "-DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix")
run("${CMAKE_COMMAND}" --build "${WORK_DIR}/build" --config "${CONFIG}")
run("${WORK_DIR}/build/consumer" "${WORK_DIR}/record.txt")
if(NOT output MATCHES "scale 1 offset -128")
  message(FATAL_ERROR "the consumer printed:\n${output}")
endif()
file(READ "${WORK_DIR}/record.txt" record)
if(NOT record MATCHES "key: \"layer\"")
  message(FATAL_ERROR "the consumer's record is:\n${record}")
endif()

# The schemas are installed for those who read the files with other tools.
foreach(schema basic_info quant_calibration_config_pytorch scale_offset_record_pytorch)
  file(GLOB_RECURSE found "${WORK_DIR}/prefix/*/${schema}.proto")
  if(NOT found)
    message(FATAL_ERROR "${schema}.proto is not installed")
  endif()
endforeach()

# A program in C, by pkg-config.
find_program(PKG_CONFIG pkg-config)
if(PKG_CONFIG AND NOT SANITIZE)
  file(GLOB_RECURSE package "${WORK_DIR}/prefix/*/amct.pc")
  get_filename_component(packages "${package}" DIRECTORY)
  set(ENV{PKG_CONFIG_PATH} "${packages}")
  run("${PKG_CONFIG}" --static --cflags --libs amct)
  separate_arguments(flags UNIX_COMMAND "${output}")
  run("${CC}" -std=c11 -Wall -Wextra -Werror -pedantic "${C_PROGRAM}" -o "${WORK_DIR}/c_program" ${flags})
  file(MAKE_DIRECTORY "${WORK_DIR}/c_files")
  run("${WORK_DIR}/c_program" "${WORK_DIR}/c_files")
endif()
