// SPDX-License-Identifier: Apache-2.0
// Files of JSON lines: every line is read to the end, and the whole as a question set whose replies are scored.
#include "benchmark_file.hpp"
#include "jsonl_reader.hpp"

#include "fuzz_input.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  pqkv_fuzz::read_untrusted([&] {
    minillama::jsonl_reader lines(file.path());
    std::size_t before = 0;
    while (lines.next()) {
      if (lines.line() <= before || lines.line() > size) std::abort();
      before = lines.line();
      lines.record().text("input");
    }
    const minillama::benchmark set = minillama::read_benchmark(file.path(), {});
    for (const minillama::benchmark_record& record : set.records) {
      if (record.prompt.empty() || record.answers.empty() || record.line > before) std::abort();
      const std::string reply = record.prompt.substr(0, 100);
      const double score = set.score(record, reply);
      if (!(score >= 0 && score <= 1)) std::abort();
    }
  });
  return 0;
}
