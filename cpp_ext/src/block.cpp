#include "block.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace flawscope {
namespace {

constexpr uint64_t kMagic = UINT64_C(0x4b4e4142'57414c46);  // "FLAWBANK" in little-endian order
constexpr int64_t kLine = 64;
constexpr uint64_t kPrime = UINT64_C(0x9e3779b97f4a7c15);

static_assert(sizeof(BlockHeader) <= kBlockRows, "rows begin behind the header");

// Where the panels, those of the screen, and the end are.
struct Layout {
    Layout(const Kernels& kernels, Storage storage, bool has_screen, int64_t m, int64_t d)
        : panels(kBlockRows + divide_up(4 * m * d, kLine) * kLine),
          screen(panels + room(kernels, storage, m, d)),
          // A line more: a loop that loads whole vectors may look a little beyond the last lane.
          end(screen + (has_screen ? room(kernels, Storage::kInt8, m, d) : 0) + kLine) {}

    static int64_t room(const Kernels& kernels, Storage storage, int64_t m, int64_t d) {
        const auto parts = Panels::parts(kernels, storage, d, divide_up(m, kernels.panel));
        return parts[0] + parts[1] + parts[2] + parts[3];
    }

    int64_t panels, screen, end;
};

Layout layout_of(const Bank& bank) {
    return {bank.kernels, bank.panels.storage, bank.has_screen, bank.m, bank.d};
}

// Lanes do not wait for each other. The turn brings high bits down, where a product alone would leave them.
uint64_t checksum_of(const char* data, int64_t bytes, uint64_t start) {
    uint64_t lanes[8];
    for (int j = 0; j < 8; ++j) lanes[j] = start + kPrime * static_cast<uint64_t>(j + 1);
    for (int64_t i = 0; i < bytes; i += kLine) {
        uint64_t words[8];
        std::memcpy(words, data + i, kLine);
        for (int j = 0; j < 8; ++j) {
            const uint64_t mixed = (lanes[j] ^ words[j]) * kPrime;
            lanes[j] = mixed << 29 | mixed >> 35;
        }
    }
    uint64_t sum = static_cast<uint64_t>(bytes);
    for (int j = 0; j < 8; ++j) {
        const uint64_t mixed = (sum ^ lanes[j]) * kPrime;
        sum = mixed << 29 | mixed >> 35;
    }
    return sum;
}

// Copies panels with what fills them up to whole lines, which are zeros: the same bank gives the same block.
void copy_panels(const Kernels& kernels, const Panels& panels, int64_t m, char* to) {
    const int64_t count = divide_up(m, kernels.panel), lanes = 4 * count * kernels.panel;
    const auto parts = Panels::parts(kernels, panels.storage, panels.d, count);
    const void* const from[4] = {panels.data.data(), panels.norms.data(), panels.factors.data(), panels.sums.data()};
    const int64_t bytes[4] = {count * panels.panel_bytes, lanes, lanes, lanes};
    for (int i = 0; i < 4; ++i) {
        if (parts[i] == 0) continue;
        std::memcpy(to, from[i], static_cast<size_t>(bytes[i]));
        std::memset(to + bytes[i], 0, static_cast<size_t>(parts[i] - bytes[i]));
        to += parts[i];
    }
}

}  // namespace

int64_t block_bytes(const Bank& bank) { return bank.rows == nullptr ? 0 : layout_of(bank).end; }

void write_block(const Bank& bank, char* block) {
    const Layout layout = layout_of(bank);
    const int64_t rows = 4 * bank.m * bank.d;
    BlockHeader header{};
    header.magic = kMagic;
    header.version = kBlockVersion;
    header.storage = static_cast<uint32_t>(bank.panels.storage);
    header.has_screen = bank.has_screen;
    header.panel = static_cast<uint32_t>(bank.kernels.panel);
    header.byte_groups = static_cast<uint32_t>(bank.kernels.byte_groups);
    std::strncpy(header.level, bank.kernels.name, sizeof header.level - 1);
    header.m = bank.m;
    header.d = bank.d;
    header.bytes = layout.end;
    header.error_bound = bank.error_bound;
    header.screen_error = bank.screen_error;
    header.screen_norm = bank.screen_norm;
    std::memset(block, 0, kBlockRows);
    std::memcpy(block + kBlockRows, bank.rows, static_cast<size_t>(rows));
    std::memset(block + kBlockRows + rows, 0, static_cast<size_t>(layout.panels - kBlockRows - rows));
    copy_panels(bank.kernels, bank.panels, bank.m, block + layout.panels);
    if (bank.has_screen) copy_panels(bank.kernels, bank.screen, bank.m, block + layout.screen);
    std::memset(block + layout.end - kLine, 0, kLine);
    header.checksum = block_checksum(header, block);
    std::memcpy(block, &header, sizeof header);
}

bool read_header(const char* block, int64_t bytes, BlockHeader* header) {
    if (bytes < kBlockRows) return false;
    std::memcpy(header, block, sizeof *header);
    return header->magic == kMagic && header->bytes == bytes && bytes % kLine == 0;
}

bool is_block_of(const BlockHeader& header, const Kernels& kernels, int64_t m, int64_t d, Storage storage,
                 Screen wanted) {
    char level[sizeof header.level] = {};
    std::strncpy(level, kernels.name, sizeof level - 1);
    const bool has_screen = takes_screen(kernels, storage, m, d, wanted);
    return header.version == kBlockVersion && std::memcmp(level, header.level, sizeof level) == 0 &&
           header.panel == static_cast<uint32_t>(kernels.panel) &&
           header.byte_groups == static_cast<uint32_t>(kernels.byte_groups) &&
           header.storage == static_cast<uint32_t>(storage) && header.has_screen == uint32_t{has_screen} &&
           header.m == m && header.d == d && header.bytes == Layout(kernels, storage, has_screen, m, d).end;
}

uint64_t block_checksum(BlockHeader header, const char* block) {
    header.checksum = 0;
    char page[kBlockRows];
    std::memcpy(page, block, sizeof page);
    std::memcpy(page, &header, sizeof header);
    return checksum_of(block + kBlockRows, header.bytes - kBlockRows, checksum_of(page, sizeof page, 0));
}

bool has_rows(const BlockHeader& header, const char* block, const float* rows) {
    return std::memcmp(block + kBlockRows, rows, static_cast<size_t>(4 * header.m * header.d)) == 0;
}

Bank::Bank(const Kernels& kernels, const BlockHeader& header, const char* block)
    : kernels(kernels),
      m(header.m),
      d(header.d),
      rows(reinterpret_cast<const float*>(block + kBlockRows)),
      panels(kernels, static_cast<Storage>(header.storage), d, divide_up(m, kernels.panel),
             block + Layout(kernels, static_cast<Storage>(header.storage), header.has_screen != 0, m, d).panels),
      error_bound(header.error_bound),
      has_screen(header.has_screen != 0) {
    if (!has_screen) return;
    const Layout layout(kernels, panels.storage, true, m, d);
    screen = Panels(kernels, Storage::kInt8, d, divide_up(m, kernels.panel), block + layout.screen);
    screen_error = header.screen_error;
    screen_norm = header.screen_norm;
}

}  // namespace flawscope
