// What the null GPU cannot do fails by its name: on standard error, in the folder of notes, and to the caller.
#pragma once

#include <string>

namespace null_gpu {

// Tells that `function` was called, which the null GPU does not have, and returns `status` for the caller to return.
int refuse(const char* function, int status);

// The function that was refused last in this thread, or an empty string.
const std::string& last_refused();

// Ends the process with a message: the library was started wrongly.
[[noreturn]] void fatal(const std::string& message);

// A path in the folder where the null GPU leaves what it noticed, or an empty string if none was asked for.
std::string note_path(const std::string& name);

}  // namespace null_gpu
