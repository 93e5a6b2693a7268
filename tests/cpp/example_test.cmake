# Runs the example and checks the record it writes: one pair of factors for the first layer, one for
# each of 16 channels for the second.
file(REMOVE "${RECORD}")
execute_process(COMMAND "${EXAMPLE}" "${RECORD}" RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${EXAMPLE} failed with ${status}: ${output}")
endif()
file(READ "${RECORD}" record)
string(REGEX MATCHALL "scale: [0-9.e-]+" scales "${record}")
string(REGEX MATCHALL "offset: -?[0-9]+" offsets "${record}")
list(LENGTH scales scale_count)
list(LENGTH offsets offset_count)
if(NOT scale_count EQUAL 17 OR NOT offset_count EQUAL 17)
  message(FATAL_ERROR "17 scales and offsets expected, found ${scale_count} and ${offset_count}:\n${record}")
endif()
if(NOT record MATCHES "key: \"layers.0.k_proj\".*key: \"layers.0.v_proj\"")
  message(FATAL_ERROR "the layers are not in configuration order:\n${record}")
endif()

# Without an argument it explains itself and fails.
execute_process(COMMAND "${EXAMPLE}" RESULT_VARIABLE status OUTPUT_QUIET ERROR_VARIABLE output)
if(NOT status EQUAL 2 OR NOT output MATCHES "usage:")
  message(FATAL_ERROR "usage and status 2 expected, not ${status}: ${output}")
endif()
