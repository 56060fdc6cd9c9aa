// Runs patch_gram's kernels on host threads beside the reference, for the sanitizers: every tile
// that is not too slow under them, single features and quads, tiles on and off the diagonal,
// several parts of the patches, listed patches, labels and codes.
#include <cmath>
#include <cstdio>
#include <vector>

#include "patch_gram.h"
#include "patch_gram_reference.h"
#include "patch_sums.h"

using namespace sylvinit;

namespace {

int failures = 0;

void compare(const char* name, PatchGram gram, int tile, Arithmetic arithmetic) {
  int status = 0;
  gram.status = &status;
  const std::size_t columns = columns_of(gram);
  const PatchGramPlan plan = plan_patch_gram(gram, arithmetic, 4, tile);
  std::vector<double> out(gram.groups * rows_of(gram) * columns), exact(out.size());
  // Exactly as much as was asked for, so that a step past the end is seen.
  std::vector<double> workspace(plan.workspace / sizeof(double), NAN);
  patch_gram(gram, plan, arithmetic, out.data(), workspace.data(), nullptr);
  patch_gram_reference(gram, exact.data());
  std::vector<float> mean(gram.groups * features_of(gram)), exact_mean(mean.size());
  std::vector<double> sums(sums_for_mean(gram, gram.n).workspace, NAN);
  patch_mean(gram, gram.n, mean.data(), sums.data(), nullptr);
  patch_mean_reference(gram, gram.n, exact_mean.data());
  double worst = mean == exact_mean ? 0.0 : 1.0;
  for (std::size_t i = 0; i < out.size(); ++i)
    worst = std::fmax(worst, std::fabs(out[i] - exact[i]));
  const bool good = worst == 0.0 && status == 0;
  std::printf("%-28s tile %3d splits %d: %s\n", name, plan.tile, plan.splits,
              good ? "ok" : "WRONG");
  failures += !good;
}

std::vector<float> integers(std::size_t n) {
  std::vector<float> x(n);
  unsigned state = 12345;
  for (float& value : x) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int>(state >> 24) % 7 - 3);
  }
  return x;
}

// A 3 x 3 convolution of (4, groups * channels, 6, 5) with padding 1, channels_last or not.
PatchGram convolution(const std::vector<float>& x, int groups, std::int64_t channels, bool last) {
  PatchGram gram;
  const std::int64_t all = groups * channels;
  gram.x = x.data();
  gram.groups = groups;
  gram.channels = channels;
  gram.entries = 4;
  gram.entry_stride = all * 30;
  gram.channel_stride = last ? 1 : 30;
  gram.tap_major = last;
  gram.axis[1] = {6, 1, 1, 1, kZeros, false};
  gram.axis[2] = {5, 1, 1, 1, kZeros, false};
  gram.axis_stride[1] = last ? 5 * all : 5;
  gram.axis_stride[2] = last ? all : 1;
  gram.kernel[1] = gram.kernel[2] = 3;
  gram.out_size[1] = 6;
  gram.out_size[2] = 5;
  gram.n = 4 * 30;
  return gram;
}

}  // namespace

int main() {
  const std::vector<float> x = integers(4 * 16 * 30), code = integers(120 * 2);
  const std::vector<std::int64_t> labels = {1, 0, 2, 1}, order = {1, 0, 3, 2};
  const std::vector<std::int64_t> starts = {0, 1, 3, 4};
  for (const Arithmetic arithmetic : {k3xTF32, kFFMA}) {
    PatchGram gram = convolution(x, 1, 4, true);  // 37 columns and quads
    compare("channels_last", gram, 32, arithmetic);
    gram = convolution(x, 2, 5, false);  // 46 columns and more, single features
    gram.draws = 7;
    gram.n = 28;
    gram.labels = labels.data();
    gram.order = order.data();
    gram.starts = starts.data();
    gram.classes = 3;
    gram.code = code.data();
    gram.codes = gram.code_stride = 2;
    compare("sampled, labels and code", gram, 32, arithmetic);
  }
  PatchGram gram = convolution(x, 1, 8, true);
  gram.n = 40;
  compare("two tiles of 64", gram, 64, k3xTF32);
  gram = convolution(x, 1, 16, false);  // five tiles across: gathered to rows
  gram.draws = 9;
  gram.n = 36;
  gram.code = code.data();
  gram.codes = gram.code_stride = 2;
  compare("gathered", gram, 32, k3xTF32);
  const std::vector<std::int64_t> entry = {3, 0, 0}, position = {29, 0, 17};
  gram = convolution(x, 1, 3, false);
  gram.axis[2].mode = kReflect;
  gram.n = 3;
  gram.entry = entry.data();
  gram.position = position.data();
  compare("listed patches", gram, 32, k3xTF32);
  PatchGram rows;
  rows.x = x.data();
  rows.channels = 6;
  rows.entries = rows.n = 300;
  rows.entry_stride = 6;
  compare("rows, two parts", rows, 32, k3xTF32);
  return failures == 0 ? 0 : 1;
}
