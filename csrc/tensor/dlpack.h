// The DLPack 1.x structs that a tensor crosses in, declared here so that nothing of torch is needed
// to build. Source: the DLPack standard (dmlc/dlpack, version 1.3); layouts are part of its ABI and
// checked below.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stoker::dlpack {

struct Version {
  uint32_t major;
  uint32_t minor;
};

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

struct Device {
  int32_t device_type;
  int32_t device_id;
};

enum TypeCode : uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBfloat = 4,
  kBool = 6,
  kFloat8E4m3fn = 10,
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ManagedTensorVersioned;

struct ExchangeApiHeader {
  Version version;
  ExchangeApiHeader* prev_api;
};

// What `type(tensor).__dlpack_c_exchange_api__` points to. Functions return 0, or -1 with a Python
// error set.
struct ExchangeApi {
  ExchangeApiHeader header;
  int (*managed_tensor_allocator)(Tensor*, ManagedTensorVersioned**, void*,
                                  void (*)(void*, const char*, const char*));
  int (*managed_tensor_from_py_object_no_sync)(void*, ManagedTensorVersioned**);
  int (*managed_tensor_to_py_object_no_sync)(ManagedTensorVersioned*, void**);
  // Fills a view that lives as long as the Python object does; takes no reference.
  int (*dltensor_from_py_object_no_sync)(void* py_object, Tensor* out);
  // The stream that the framework would launch on now, for that device.
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out_stream);
};

static_assert(sizeof(void*) == 8, "stoker supports 64-bit platforms");
static_assert(sizeof(Device) == 8 && sizeof(DataType) == 4 && sizeof(Version) == 8);
static_assert(sizeof(Tensor) == 48);
static_assert(offsetof(Tensor, device) == 8 && offsetof(Tensor, ndim) == 16 &&
              offsetof(Tensor, dtype) == 20 && offsetof(Tensor, shape) == 24 &&
              offsetof(Tensor, strides) == 32 && offsetof(Tensor, byte_offset) == 40);
static_assert(sizeof(ExchangeApiHeader) == 16 && sizeof(ExchangeApi) == 56);
static_assert(offsetof(ExchangeApi, dltensor_from_py_object_no_sync) == 40 &&
              offsetof(ExchangeApi, current_work_stream) == 48);

}  // namespace stoker::dlpack
