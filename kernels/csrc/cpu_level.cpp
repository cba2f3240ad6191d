// The highest instruction-set level that the running CPU can execute.

#include "export.h"

// 4, 3, 2 for x86-64-v4, v3, v2; 1 elsewhere ("generic")
VW_EXPORT int vw_cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 3;
  return 2;
#else
  return 1;
#endif
}
