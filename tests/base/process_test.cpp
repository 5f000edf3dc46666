#include <cstdlib>
#include <set>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lockstep/base/process.hpp>

using namespace lockstep;

TEST_CASE("this process is named by host, boot, pid and start time, the same at every call") {
  const SystemIdentity identity;
  CHECK_FALSE(identity.host().empty());
  CHECK(identity.boot_id() == SystemIdentity().boot_id());
  CHECK(identity.pid() == ::getpid());
  const auto start = identity.start_time(identity.pid());
  REQUIRE(start.has_value());
  CHECK(identity.start_time(identity.pid()) == start);
}

TEST_CASE("a process that does not exist, or has ended and waits for its parent, has no start time") {
  const SystemIdentity identity;
  CHECK_FALSE(identity.start_time(-1).has_value());
  CHECK_FALSE(identity.start_time(std::int64_t{1} << 40).has_value());
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  REQUIRE(child > 0);
  siginfo_t info;
  ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);  // ended, but still listed
  CHECK_FALSE(identity.start_time(child).has_value());
  ::waitpid(child, nullptr, 0);
  CHECK_FALSE(identity.start_time(child).has_value());
}

TEST_CASE("the batch job is that of Slurm") {
  const SystemIdentity identity;
  ::unsetenv("SLURM_JOB_ID");
  CHECK(identity.job_id().empty());
  ::setenv("SLURM_JOB_ID", "123", 1);
  CHECK(identity.job_id() == "slurm-123");
  ::unsetenv("SLURM_JOB_ID");
}

TEST_CASE("no two nonces are equal") {
  SystemIdentity identity;
  std::set<std::uint64_t> seen;
  for (int i = 0; i < 1000; ++i) CHECK(seen.insert(identity.nonce()).second);
}
