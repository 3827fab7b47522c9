// What CUDA tells of a device, to the runtime's callers and the driver's alike.
#pragma once

namespace null_gpu {

// `attribute` as cudaDeviceAttr and CUdevice_attribute number them.
int device_attribute(int attribute, int device);

}  // namespace null_gpu
