// SPDX-License-Identifier: MIT
// One program, two files with different -m flags. The plain file must run on a CPU without AVX.
#include <cmath>
#include <cstdio>

float sum_with_plain_flags();
float sum_with_wide_flags();

int main() {
  const float plain = sum_with_plain_flags();
  std::printf("plain flags: %.7f\n", static_cast<double>(plain));
  if (!std::isfinite(plain)) return 1;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) {
    std::printf("no AVX-512 here: the other file does not run\n");
    return 0;
  }
  const float wide = sum_with_wide_flags();
  std::printf("AVX-512 flags: %.7f\n", static_cast<double>(wide));
  return std::fabs(plain - wide) <= 1e-4f * std::fabs(plain) ? 0 : 1;
}
