// How the emulator's device functions are declared.
#pragma once

// Part of the kernel that calls it, so that messages name the kernel's line.
#define EMULATED_DEVICE __attribute__((always_inline)) inline

// Last parameters that say where the call stands.
#define EMULATED_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
