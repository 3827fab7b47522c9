// A function that the null GPU does not have fails, and its name goes to standard error and to the folder of notes.
#pragma once

#include <string>

namespace null_gpu {

// Reports that `function` was called, which the null GPU does not have, and returns `status` for the caller to return.
int refuse(const char* function, int status);

// The function that was refused last in this thread, or an empty string.
const std::string& last_refused();

// Ends the process with a message: its environment variables are wrong.
[[noreturn]] void fatal(const std::string& message);

// A path in the folder of notes, or an empty string without such a folder.
std::string note_path(const std::string& name);

}  // namespace null_gpu
