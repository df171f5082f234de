// Runs a program without a facility of Linux, as a kernel or a container's filter that lacks it
// would:
//
//   without refuse FACILITY PROGRAM...   its system calls fail: the program must do without
//   without kill FACILITY PROGRAM...     its system calls kill: nothing may use it at all
//   without used FACILITY PROGRAM...     succeeds if the program is killed, that is, uses it
//
// "used" shows that "kill" would find a use. Exit code 77: this system has no such facility.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

namespace {

constexpr unsigned kCollapse = 25;  // MADV_COLLAPSE
constexpr int kAbsent = 77;

struct Facility {
  const char* name;
  unsigned call;
  bool any_advice;  // of madvise only that of kCollapse is meant otherwise
  int error;        // what a kernel without it says
};

constexpr Facility kFacilities[] = {
    {"affinity", __NR_sched_setaffinity, true, ENOSYS},
    {"huge_pages", __NR_madvise, false, EINVAL},
    {"splice", __NR_splice, true, ENOSYS},
};

// Huge pages on request, which the core does not ask for where they are switched off.
bool has(const Facility& facility) {
  if (facility.any_advice) return true;
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos;
}

// Of the third argument the lower half, which comes first where bytes are in little-endian order.
bool install(const Facility& facility, unsigned action) {
  constexpr unsigned kNumber = offsetof(seccomp_data, nr);
  constexpr unsigned kThird = offsetof(seccomp_data, args) + 2 * sizeof(__u64);
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kNumber),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, facility.call, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kThird),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kCollapse, 0,
               static_cast<unsigned char>(facility.any_advice ? 0 : 1)),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {static_cast<unsigned short>(std::size(code)), code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

int fail(const char* what) {
  std::perror(what);
  return EXIT_FAILURE;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string how = count > 3 ? arguments[1] : "", what = count > 3 ? arguments[2] : "";
  const Facility* facility = nullptr;
  for (const Facility& each : kFacilities) {
    if (what == each.name) facility = &each;
  }
  if (facility == nullptr || (how != "refuse" && how != "kill" && how != "used")) {
    std::fprintf(stderr, "without refuse|kill|used affinity|huge_pages|splice PROGRAM ...\n");
    return EXIT_FAILURE;
  }
  if (!has(*facility)) {
    std::printf("this system has no %s\n", facility->name);
    return kAbsent;
  }
  const pid_t child = how == "used" ? fork() : 0;
  if (child < 0) return fail("fork");
  if (child > 0) {
    int status = 0;
    if (waitpid(child, &status, 0) != child) return fail("waitpid");
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) return EXIT_SUCCESS;
    std::fprintf(stderr, "%s ended without a use of %s\n", arguments[3], facility->name);
    return EXIT_FAILURE;
  }
  const auto error = static_cast<unsigned>(facility->error);
  if (!install(*facility, how == "refuse" ? SECCOMP_RET_ERRNO | error : SECCOMP_RET_KILL_PROCESS))
    return fail("a filter of system calls");
  if (how == "refuse" && setenv("HEARTH_REFUSED", facility->name, 1) != 0) return fail("setenv");
  execv(arguments[3], arguments + 3);
  return fail(arguments[3]);
}
