// A value for each KV group, without memory of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace stoker {

inline constexpr int32_t kMaxKVGroups = 8;

template <typename T>
class PerGroup {
 public:
  void assign(size_t size, const T& value) {
    size_ = size;
    std::fill(begin(), end(), value);
  }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* begin() { return values_.data(); }
  T* end() { return begin() + size_; }
  const T* begin() const { return values_.data(); }
  const T* end() const { return begin() + size_; }
  T& operator[](size_t group) { return values_[group]; }
  const T& operator[](size_t group) const { return values_[group]; }

 private:
  size_t size_ = 0;  // beside the first value, which most models have alone
  std::array<T, kMaxKVGroups> values_{};
};

}  // namespace stoker
