// The selective scan for doubles.

#define VW_DOUBLE
#include "selective_scan.cpp"
