// SPDX-License-Identifier: MIT
// What compile time is measured against: one matrix product and one matrix-vector product of Eigen.
#include <Eigen/Core>

void multiply(const Eigen::MatrixXf& a, const Eigen::MatrixXf& b, Eigen::MatrixXf& c) {
  c.noalias() = a * b;
}
void multiply(const Eigen::MatrixXf& a, const Eigen::VectorXf& x, Eigen::VectorXf& y) {
  y.noalias() = a * x;
}
