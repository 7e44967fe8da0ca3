// The screen of a float32 bank, an int8 copy m̂ of its rows: the k nearest rows are looked for in the copy and proved in
// float32.
//
// By the triangle inequality every row that is as near as a row at distance t has ‖q̂ − m̂‖ ≤ t + ‖q − q̂‖ + ‖m − m̂‖. The
// screen keeps the least and the second least ‖q̂ − m̂‖² of every lane. The k best of these least values name k rows; t is
// the largest true distance of them. Rows below the limit are compared in float32; where some second least is below it
// too, a row may have been lost: the screen is searched again for all rows below the limit, which by now is known. Where
// they are too many the query is searched for in float32 as if there were no screen.
#pragma once

#include "bank.h"
#include "nearest.h"
#include "tiles.h"

namespace flawscope {

// Whether k neighbours are looked for through the screen.
bool screen_pays(const Bank& bank, int k);

// The k nearest rows of queries [first, first + count), by (Σ(q − m)², row).
void search_screened(const Bank& bank, const Queries& queries, int64_t first, int64_t count, int k, int workers,
                     float* squared, int64_t* rows);

// The bits that number all panels in the values of a State, or none where they would take too many of a value's.
int32_t screen_tag_mask(int64_t panels);

// Write the nearest row of query `q` where the least and second least values of the screen in `state` prove it, or NaN
// and −1 for a query without a distance. False, and nothing written, where they do not.
bool write_proved(const Bank& bank, const Tiles& tiles, int64_t q, State& state, float* squared, int64_t* row);

}  // namespace flawscope
