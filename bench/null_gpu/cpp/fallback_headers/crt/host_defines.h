// The CUDA runtime's headers include this file, which NVIDIA ships in another package, with its compiler.
// In C++ that is compiled for the host, all of these mean nothing.
#pragma once

#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define __specialization_static
#define __host__
#define __device__
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#define __align__(bytes) __attribute__((aligned(bytes)))
