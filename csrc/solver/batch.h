// Independent problems on several threads.
#pragma once

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace sylvinit {

// Calls work(i) for i in [0, count); work must not throw. The calling thread takes part.
template <class Work>
void for_each_problem(long long count, int threads, const Work& work) {
  std::atomic<long long> next{0};
  auto run = [&] {
    for (long long i = next.fetch_add(1); i < count; i = next.fetch_add(1)) work(i);
  };
  std::vector<std::thread> helpers;
  const long long wanted = threads < count ? threads : count;
  helpers.reserve(wanted > 0 ? wanted : 0);
  for (long long i = 1; i < wanted; ++i) {
    try {
      helpers.emplace_back(run);
    } catch (const std::system_error&) {
      break;  // no more threads: those there are do all the work
    }
  }
  run();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace sylvinit
