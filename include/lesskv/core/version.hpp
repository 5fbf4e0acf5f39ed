// SPDX-License-Identifier: MIT
// The one place where the version is written; CMake reads it from here.
#pragma once

#define LESSKV_VERSION_MAJOR 0
#define LESSKV_VERSION_MINOR 1
#define LESSKV_VERSION_PATCH 0
