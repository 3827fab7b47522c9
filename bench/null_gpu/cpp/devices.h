// The attributes of a device, for callers of the runtime and of the driver.
#pragma once

namespace null_gpu {

// `attribute` as cudaDeviceAttr and CUdevice_attribute number them.
int device_attribute(int attribute, int device);

}  // namespace null_gpu
