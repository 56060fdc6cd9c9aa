// Which number stands in row p and column f of Z: index arithmetic of patch_gram, on host and GPU.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "patch_gram.h"
#include "patch_index.cuh"
#include "philox.cuh"

namespace sylvinit {

// Patch p of a call: its entry of the activation, its row-major output position, its label's index.
struct Patch {
  std::int64_t entry;
  std::int64_t position;
  std::int64_t owner;
};

// Patches of a sample; a listed patch is a sample of its own.
SYLVINIT_HD std::int64_t patches_of_owner(const PatchGram& gram) {
  if (gram.entry != nullptr) return 1;
  const std::int64_t width = gram.out_size[0] * gram.out_size[1] * gram.out_size[2];
  const std::int64_t available = gram.entries_per_sample * width;
  return gram.draws > 0 && gram.draws < available ? gram.draws : available;
}

SYLVINIT_HD Patch choose_patch(const PatchGram& gram, std::int64_t p) {
  if (gram.entry != nullptr) return {gram.entry[p], gram.position[p], p};
  const std::int64_t width = gram.out_size[0] * gram.out_size[1] * gram.out_size[2];
  const std::int64_t available = gram.entries_per_sample * width;
  const bool random = gram.draws > 0 && gram.draws < available;
  const std::int64_t taken = random ? gram.draws : available;
  const std::int64_t sample = p / taken;
  std::int64_t position = p - sample * taken;
  if (random) {
    const std::uint64_t index = static_cast<std::uint64_t>(gram.first_sample + sample);
    position = static_cast<std::int64_t>(sample_position(gram.key0, gram.key1, index,
                                                         static_cast<std::uint32_t>(position),
                                                         static_cast<std::uint64_t>(available)));
  }
  const std::int64_t within = position / width;
  return {sample * gram.entries_per_sample + within, position - within * width, sample};
}

// Patch p in the terms of the activation.
struct PatchRow {
  std::int64_t offset;  // of its entry
  int at[kAxes];        // output coordinates
  int label;            // or one of the three below
};

constexpr int kNoPatch = -1;  // past the last patch: a row of zeros
constexpr int kBadLabel = -2;
constexpr int kBadPatch = -3;  // a listed patch that does not exist: zeros too

SYLVINIT_HD bool has_patch(int label) { return label != kNoPatch && label != kBadPatch; }

SYLVINIT_HD PatchRow row_of_patch(const PatchGram& gram, std::int64_t p) {
  PatchRow row = {0, {0, 0, 0}, kNoPatch};
  if (p >= gram.n) return row;
  const Patch patch = choose_patch(gram, p);
  const std::int64_t width = gram.out_size[0] * gram.out_size[1] * gram.out_size[2];
  if (patch.entry < 0 || patch.entry >= gram.entries || patch.position < 0 ||
      patch.position >= width) {
    row.label = kBadPatch;
    return row;
  }
  row.offset = patch.entry * gram.entry_stride;
  const std::int64_t line = patch.position / gram.out_size[2];
  row.at[0] = static_cast<int>(line / gram.out_size[1]);
  row.at[1] = static_cast<int>(line % gram.out_size[1]);
  row.at[2] = static_cast<int>(patch.position % gram.out_size[2]);
  const std::int64_t label = gram.labels == nullptr ? 0 : gram.labels[patch.owner];
  const bool known = label >= 0 && (gram.labels == nullptr || label < gram.classes);
  row.label = known ? static_cast<int>(label) : kBadLabel;
  return row;
}

// An element lies at the sum of four offsets: of its entry, its channel, and two of its tap. One
// of those belongs to the first two axes, the other to the last axis, so that a patch needs
// outer_taps + kernel[2] of them, in this order, instead of one per tap.
constexpr int kOutside = static_cast<int>(0x80000000u);  // a structural zero; negative

SYLVINIT_HD int outer_taps(const PatchGram& gram) {
  return static_cast<int>(gram.kernel[0] * gram.kernel[1]);
}

SYLVINIT_HD int tap_slots(const PatchGram& gram) {
  return outer_taps(gram) + static_cast<int>(gram.kernel[2]);
}

SYLVINIT_HD int tap_offset(const PatchGram& gram, const PatchRow& row, int slot) {
  const int outer = outer_taps(gram);
  if (slot >= outer) {
    const std::int64_t at = patch_input_index(gram.axis[2], row.at[2], slot - outer);
    return at < 0 ? kOutside : static_cast<int>(at * gram.axis_stride[2]);
  }
  const int rows = static_cast<int>(gram.kernel[1]);
  const std::int64_t at0 = patch_input_index(gram.axis[0], row.at[0], slot / rows);
  const std::int64_t at1 = patch_input_index(gram.axis[1], row.at[1], slot % rows);
  if (at0 < 0 || at1 < 0) return kOutside;
  return static_cast<int>(at0 * gram.axis_stride[0] + at1 * gram.axis_stride[1]);
}

// Feature f of a patch: the offset of its channel, and the slots of its tap.
struct PatchColumn {
  std::int64_t offset;
  int outer;
  int inner;
};

SYLVINIT_HD PatchColumn column_of_feature(const PatchGram& gram, int group, std::int64_t feature) {
  const std::int64_t taps = taps_of(gram);
  const std::int64_t channel = gram.tap_major ? feature % gram.channels : feature / taps;
  const int tap = static_cast<int>(gram.tap_major ? feature / gram.channels : feature % taps);
  const int across = static_cast<int>(gram.kernel[2]);
  return {(group * gram.channels + channel) * gram.channel_stride, tap / across,
          outer_taps(gram) + tap % across};
}

// Offset of an element of the activation, or -1 for a structural zero. `taps` are the tap_offset
// of the patch.
SYLVINIT_HD std::int64_t element_offset(std::int64_t row_offset, const int* taps,
                                        const PatchColumn& column) {
  const int outer = taps[column.outer], inner = taps[column.inner];
  return (outer | inner) < 0 ? -1 : row_offset + column.offset + outer + inner;
}

// The columns that are multiplied are x - shift and the code. Their place in z: the constant and
// the labels lie between.
SYLVINIT_HD std::int64_t products_of(const PatchGram& gram) {
  return features_of(gram) + gram.codes;
}

SYLVINIT_HD std::int64_t place_of_product(const PatchGram& gram, std::int64_t column) {
  return column < features_of(gram) ? column : column + 1 + gram.classes;
}

// How many of them lie before a column of z.
SYLVINIT_HD std::int64_t products_before(const PatchGram& gram, std::int64_t column) {
  const std::int64_t d = features_of(gram), code = d + 1 + gram.classes;
  return (column < d ? column : d) + (column > code ? column - code : 0);
}

// Tile `index` of the upper triangle of tiles x tiles, row by row.
struct TilePair {
  int row;
  int column;
};

SYLVINIT_HD TilePair tile_pair(std::int64_t index, int tiles) {
  int row = 0;
  std::int64_t left = tiles;  // tiles in this row
  while (index >= left) {
    index -= left;
    --left;
    ++row;
  }
  return {row, row + static_cast<int>(index)};
}

// Chunks [begin, end) of part `split`, of `chunks` in all.
SYLVINIT_HD std::int64_t split_begin(std::int64_t chunks, int splits, int split) {
  return chunks / splits * split + (split < chunks % splits ? split : chunks % splits);
}

}  // namespace sylvinit
