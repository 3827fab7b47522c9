// What a program may find in this library: the functions of CUDA's libraries, under their C names.
#pragma once

#define EXPORT extern "C" __attribute__((visibility("default")))
