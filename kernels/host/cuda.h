// The driver's tensor map for the host device.
#pragma once
#include <simt_system.h>
