// SPDX-License-Identifier: MIT
// The rate of Eigen's matrix product on this machine, with every instruction it has. A file of its
// own, compiled with -march=native; Eigen under another name, so that the linker cannot mix its
// functions with those of the plain files.
#define Eigen EigenNative
#include <Eigen/Core>
#undef Eigen

#include "gemm_native.hpp"

double gemm_rate() {
  constexpr long n = 768;
  using Matrix = EigenNative::MatrixXf;
  static const Matrix a = Matrix::Random(n, n), b = Matrix::Random(n, n);
  static Matrix c(n, n);
  const double start = seconds_now();
  c.noalias() = a * b;
  return 2.0 * n * n * n / (seconds_now() - start);
}
