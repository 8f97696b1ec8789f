// Hopper's warpgroup products of two tiles in shared memory, for the widths that the linear kernels
// use: D[64, kWidth] = A[64, 16] B[kWidth, 16]' or, with `keep`, that added to D.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace stoker::cuda::ptx {

template <typename T, int kWidth>
struct Product;

// Eight registers of D, as the instruction names them and as operands.
#define STOKER_N0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define STOKER_N1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define STOKER_N2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define STOKER_N3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define STOKER_N4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define STOKER_N5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define STOKER_N6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define STOKER_N7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define STOKER_N8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define STOKER_N9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define STOKER_N10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define STOKER_N11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define STOKER_N12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define STOKER_N13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define STOKER_D(i)                                                                               \
  "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), \
      "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
// a, b, keep: the numbers of the operands that follow D.
#define STOKER_PRODUCT(T, name, width, registers, a, b, keep, ...)                     \
  template <>                                                                          \
  struct Product<T, width> {                                                           \
    static __device__ __forceinline__ void add(float (&d)[width / 2], uint64_t tile_a, \
                                               uint64_t tile_b, bool keeps = true) {   \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " keep                            \
                   ", 0;\n"                                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #width "k16.f32." name "." name \
                   " {" registers "}, " a ", " b ", p, 1, 1, 0, 0;\n}\n"               \
                   : __VA_ARGS__                                                       \
                   : "l"(tile_a), "l"(tile_b), "r"(int(keeps)));                       \
    }                                                                                  \
  };
#define STOKER_PRODUCTS(T, name)                                                                  \
  STOKER_PRODUCT(T, name, 32, STOKER_N0 STOKER_N1, "%16", "%17", "%18", STOKER_D(0), STOKER_D(1)) \
  STOKER_PRODUCT(T, name, 48, STOKER_N0 STOKER_N1 STOKER_N2, "%24", "%25", "%26", STOKER_D(0),    \
                 STOKER_D(1), STOKER_D(2))                                                        \
  STOKER_PRODUCT(T, name, 64, STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3, "%32", "%33", "%34",       \
                 STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3))                              \
  STOKER_PRODUCT(T, name, 80, STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3 STOKER_N4, "%40", "%41",    \
                 "%42", STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3), STOKER_D(4))          \
  STOKER_PRODUCT(T, name, 96, STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3 STOKER_N4 STOKER_N5, "%48", \
                 "%49", "%50", STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3), STOKER_D(4),   \
                 STOKER_D(5))                                                                     \
  STOKER_PRODUCT(T, name, 112,                                                                    \
                 STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3 STOKER_N4 STOKER_N5 STOKER_N6, "%56",    \
                 "%57", "%58", STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3), STOKER_D(4),   \
                 STOKER_D(5), STOKER_D(6))                                                        \
  STOKER_PRODUCT(T, name, 128,                                                                    \
                 STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3 STOKER_N4 STOKER_N5 STOKER_N6 STOKER_N7, \
                 "%64", "%65", "%66", STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3),         \
                 STOKER_D(4), STOKER_D(5), STOKER_D(6), STOKER_D(7))                              \
  STOKER_PRODUCT(T, name, 160,                                                                    \
                 STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3 STOKER_N4 STOKER_N5 STOKER_N6 STOKER_N7  \
                     STOKER_N8 STOKER_N9,                                                         \
                 "%80", "%81", "%82", STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3),         \
                 STOKER_D(4), STOKER_D(5), STOKER_D(6), STOKER_D(7), STOKER_D(8), STOKER_D(9))    \
  STOKER_PRODUCT(T, name, 192,                                                                    \
                 STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3 STOKER_N4 STOKER_N5 STOKER_N6 STOKER_N7  \
                     STOKER_N8 STOKER_N9 STOKER_N10 STOKER_N11,                                   \
                 "%96", "%97", "%98", STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3),         \
                 STOKER_D(4), STOKER_D(5), STOKER_D(6), STOKER_D(7), STOKER_D(8), STOKER_D(9),    \
                 STOKER_D(10), STOKER_D(11))                                                      \
  STOKER_PRODUCT(T, name, 224,                                                                    \
                 STOKER_N0 STOKER_N1 STOKER_N2 STOKER_N3 STOKER_N4 STOKER_N5 STOKER_N6 STOKER_N7  \
                     STOKER_N8 STOKER_N9 STOKER_N10 STOKER_N11 STOKER_N12 STOKER_N13,             \
                 "%112", "%113", "%114", STOKER_D(0), STOKER_D(1), STOKER_D(2), STOKER_D(3),      \
                 STOKER_D(4), STOKER_D(5), STOKER_D(6), STOKER_D(7), STOKER_D(8), STOKER_D(9),    \
                 STOKER_D(10), STOKER_D(11), STOKER_D(12), STOKER_D(13))
STOKER_PRODUCTS(__nv_bfloat16, "bf16")
STOKER_PRODUCTS(__half, "f16")
#undef STOKER_PRODUCTS
#undef STOKER_PRODUCT
#undef STOKER_D
#undef STOKER_N0
#undef STOKER_N1
#undef STOKER_N2
#undef STOKER_N3
#undef STOKER_N4
#undef STOKER_N5
#undef STOKER_N6
#undef STOKER_N7
#undef STOKER_N8
#undef STOKER_N9
#undef STOKER_N10
#undef STOKER_N11
#undef STOKER_N12
#undef STOKER_N13

}  // namespace stoker::cuda::ptx
