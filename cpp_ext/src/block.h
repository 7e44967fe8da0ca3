// A bank as one block of memory: header, rows, panels, and the panels of the screen. Written once, it is mapped by many
// processes, which then have its pages in common.
#pragma once

#include <cstdint>

#include "bank.h"

namespace flawscope {

constexpr int64_t kBlockRows = 4096;  // a page: rows, and all that follows, begin at a cache line
constexpr uint32_t kBlockVersion = 1;  // raise it wherever a panel, a norm or this header gets another meaning

struct BlockHeader {
    uint64_t magic;  // a number: in the other byte order it is another one
    uint32_t version, storage, has_screen, panel, byte_groups, reserved;
    char level[16];  // of `Kernels::name`, filled up with zeros
    int64_t m, d, bytes;
    double error_bound, screen_error, screen_norm;
    uint64_t checksum;  // of the whole block with a zero here
};

// Bytes of the block of a bank; 0 for one without rows.
int64_t block_bytes(const Bank& bank);
void write_block(const Bank& bank, char* block);

// False where it is no block, or one that has been cut off.
bool read_header(const char* block, int64_t bytes, BlockHeader* header);
// Whether a block is what a bank of such rows and options would write on this level; then its parts are where they are
// looked for, and not beyond its end.
bool is_block_of(const BlockHeader& header, const Kernels& kernels, int64_t m, int64_t d, Storage storage,
                 Screen wanted);
// It finds damage, not intent: whoever may write the block may write the sum.
uint64_t block_checksum(BlockHeader header, const char* block);
bool has_rows(const BlockHeader& header, const char* block, const float* rows);

}  // namespace flawscope
