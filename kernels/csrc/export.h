// Declarations of all compiled kernels: the export of functions, and the suffix of the instruction-set level.

#pragma once

#if defined(_WIN32)
#define VW_EXPORT extern "C" __declspec(dllexport)
#else
#define VW_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define VW_JOIN2(a, b) a##_##b
#define VW_JOIN(a, b) VW_JOIN2(a, b)
#define VW_NAME(name) VW_JOIN(name, VW_LEVEL)

#define INLINE inline __attribute__((always_inline))
