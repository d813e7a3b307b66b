# Included by CMake after every project() call (CMAKE_PROJECT_INCLUDE).
#
# The binding forces LLAMA_BUILD_COMMON into the cache although nothing in its Python code opens libllama-common, which
# is a third of the compile time. A normal variable of the same name is read before the cache, and under CMP0126 (set by
# the binding's cmake_minimum_required) writing the cache does not remove it.
set(LLAMA_BUILD_COMMON OFF)
