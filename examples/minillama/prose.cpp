// SPDX-License-Identifier: Apache-2.0
// A chapter has one subject, whose people, places and things fill the slots of its sentences: text far apart differs, text nearby does not.
#include "prose.hpp"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <string_view>
#include <vector>

#include "random_source.hpp"

namespace minillama {
namespace {

constexpr std::size_t text_bytes = 512 * 1024;
constexpr std::size_t line_columns = 78;
constexpr std::uint64_t text_seed = 1;

/// What fills the slots {person}, {place}, {thing}, {many} and {doing} of a chapter.
struct subject {
  const char* title;
  const char* people[4];
  const char* places[4];
  const char* things[6];
  const char* many[4];
  const char* doing[4];
};

constexpr subject subjects[] = {
    {"The night ferry",
     {"the captain", "the deck hand", "the ticket clerk", "the engineer on duty"},
     {"the landing stage", "the car deck", "the waiting room", "the engine room"},
     {"the log book", "the gangway", "the radio", "the spare rope", "the timetable", "the fog horn"},
     {"the passengers", "the life jackets", "the tickets", "the lorries"},
     {"loading the last lorry", "closing the gate", "checking the tide", "calling the other shore"}},
    {"The bakery on the corner",
     {"the baker", "the apprentice", "the miller's driver", "the woman at the counter"},
     {"the cellar", "the shop", "the yard behind the ovens", "the cooling room"},
     {"the old oven", "the scale", "the order list", "the dough trough", "the delivery bicycle", "the thermometer"},
     {"the loaves", "the trays", "the customers", "the sacks of flour"},
     {"weighing the flour", "heating the oven", "shaping the rolls", "sweeping the floor"}},
    {"The town library",
     {"the librarian", "the archivist", "a student helper", "the binder"},
     {"the reading room", "the map cabinet", "the stacks", "the front desk"},
     {"the catalogue", "the return box", "the reading lamp", "the step ladder", "the date stamp", "the loan register"},
     {"the readers", "the new books", "the old newspapers", "the index cards"},
     {"sorting the returns", "repairing a spine", "writing the cards", "answering letters"}},
    {"The weather station",
     {"the observer", "the technician", "the night watch", "the visiting scientist"},
     {"the hut on the hill", "the instrument field", "the small office", "the roof"},
     {"the barometer", "the rain gauge", "the wind vane", "the chart recorder", "the battery", "the notebook"},
     {"the readings", "the cables", "the forecasts", "the balloons"},
     {"reading the gauges", "clearing the snow", "sending the morning report", "changing the paper roll"}},
    {"The orchard",
     {"the grower", "a picker", "the foreman", "the neighbour with the tractor"},
     {"the lower field", "the packing shed", "the cold store", "the nursery bed"},
     {"the ladder", "the sprayer", "the fence", "the sorting table", "the water pump", "the pruning saw"},
     {"the apples", "the crates", "the young trees", "the beehives"},
     {"pruning the rows", "grading the fruit", "mending the fence", "watering the young trees"}},
    {"The repair shop",
     {"the mechanic", "the owner", "the trainee", "the man from the parts store"},
     {"the pit", "the bench by the window", "the parts store", "the paint booth"},
     {"the lift", "the torque wrench", "the work sheet", "the compressor", "the vice", "the lathe"},
     {"the spare parts", "the invoices", "the bolts", "the tyres"},
     {"testing the brakes", "ordering a part", "tightening the bolts", "cleaning the tools"}},
    {"The post office",
     {"the postmaster", "the carrier", "the sorter", "the clerk at the window"},
     {"the sorting hall", "the counter", "the loading bay", "the strong room"},
     {"the stamp machine", "the mail van", "the address book", "the parcel scale", "the bell", "the delivery sheet"},
     {"the parcels", "the letters", "the mail bags", "the forms"},
     {"sorting the letters", "weighing parcels", "locking the safe", "planning the rounds"}},
    {"The railway junction",
     {"the signaller", "the guard", "the track inspector", "the station master"},
     {"the signal box", "the goods yard", "the platform", "the level crossing"},
     {"the lever frame", "the telephone", "the points motor", "the train register", "the clock", "the brake van"},
     {"the wagons", "the sleepers", "the trains", "the travellers"},
     {"setting the points", "walking the line", "coupling the wagons", "changing the lamps"}},
    {"The village school",
     {"the head teacher", "the caretaker", "a new pupil", "the music teacher"},
     {"the main hall", "the playground", "the science room", "the kitchen"},
     {"the blackboard", "the piano", "the boiler", "the attendance book", "the globe", "the notice board"},
     {"the pupils", "the chairs", "the exercise books", "the parents"},
     {"marking the tests", "ringing the bell", "setting the tables", "planning the trip"}},
    {"The print shop",
     {"the printer", "the typesetter", "the proof reader", "the paper merchant"},
     {"the press room", "the drying racks", "the type store", "the office upstairs"},
     {"the press", "the cutter", "the ink drum", "the proof", "the order book", "the folding machine"},
     {"the sheets", "the posters", "the plates", "the proofs"},
     {"mixing the ink", "cutting the paper", "reading the proof", "washing the rollers"}},
    {"The mountain hut",
     {"the warden", "the guide", "a tired walker", "the cook"},
     {"the dormitory", "the drying room", "the terrace", "the store under the stairs"},
     {"the stove", "the guest book", "the first aid box", "the cistern", "the flag", "the cable lift"},
     {"the guests", "the blankets", "the supplies", "the boots"},
     {"melting the snow", "carrying the supplies", "counting the beds", "marking the path"}},
    {"The small museum",
     {"the curator", "the guard at the door", "the restorer", "a retired teacher"},
     {"the east room", "the basement store", "the entrance hall", "the workshop"},
     {"the display case", "the inventory", "the alarm", "the humidity meter", "the visitors' book", "the plaster cast"},
     {"the coins", "the labels", "the visitors", "the drawings"},
     {"dusting the cases", "writing the labels", "hanging the drawings", "showing a school class around"}}};

constexpr const char* times[] = {
    "in the early morning",  "before noon",     "shortly after lunch",      "late in the evening", "on weekdays",
    "on the first Monday",   "in winter",       "during the summer months", "once a week",         "every second day",
    "at the end of a month", "after a holiday", "when the weather turns",   "in a quiet hour",     "twice a year"};
constexpr const char* manners[] = {"without haste",
                                   "with great care",
                                   "as the rules ask",
                                   "by hand",
                                   "in pairs",
                                   "with little noise",
                                   "from memory",
                                   "step by step",
                                   "as it was always done",
                                   "in good order",
                                   "more slowly than before"};
constexpr const char* states[] = {"clean",        "ready",  "out of order", "in good shape", "too heavy for one person", "almost new",
                                  "hard to find", "locked", "cold",         "worn but safe", "older than it looks",      "wet"};
constexpr const char* numerals[] = {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "a dozen", "about twenty"};
constexpr const char* reasons[] = {"because the light is better there", "since nobody else has the key", "so that nothing is lost",
                                   "because it saves a walk",           "since the floor is uneven",     "to keep the cost down",
                                   "because the law asks for it",       "so that others can rest",       "since the last accident",
                                   "because the space is small",        "to leave time for questions",   "so that the day ends well"};

constexpr std::size_t most_paragraphs = 5, most_sentences = 6;  // of a chapter, of a paragraph

constexpr const char* sentences[] = {"{time} {person} goes to {place} and begins with {doing}.",
                                     "{thing} stands in {place}, {reason}.",
                                     "{person} keeps {thing} {state}, although this takes {number} hours.",
                                     "If {many} arrive late, {person} starts {doing} without them.",
                                     "Nobody enters {place} while {person} is {doing}.",
                                     "{many} are brought to {place} {time} and counted {manner}.",
                                     "It takes {number} minutes to carry {many} from {place} to {place}.",
                                     "{person} once forgot {thing} in {place}, and {number} people searched for it.",
                                     "{doing} is done {manner}, {reason}.",
                                     "After {doing}, {person} writes a short note and leaves it beside {thing}.",
                                     "There are {number} rules about {many}, and the first is that they stay in {place}.",
                                     "{thing} is {state}; {person} looks at it {time}.",
                                     "What {person} says about {thing} is not always what {person} says.",
                                     "{time} {many} fill {place}, and {doing} has to wait.",
                                     "Most visitors ask for {thing}, but {person} shows them {place} first.",
                                     "{person} learned {doing} from {person}, {manner}.",
                                     "A new plan for {place} is written {time}, and {number} pages of it are about {many}.",
                                     "When {thing} is {state}, {person} must tell {person} at once.",
                                     "{many} that are {state} go back to {place}, {reason}.",
                                     "It is {person} who decides whether {thing} stays in {place}.",
                                     "Between {doing} and {doing} there is a break of {number} minutes.",
                                     "{person} and {person} share {thing}, {reason}.",
                                     "Many think that {doing} is easy; {person} knows that it is not.",
                                     "The door of {place} is {state} {time}.",
                                     "For {number} years {many} were kept in {place}, until {person} found a better way.",
                                     "{thing} is used for {number} hours {time} and then cleaned {manner}.",
                                     "Where {place} ends, there is a corner for {many}, {reason}.",
                                     "Only {person} may move {thing}, and only {time}.",
                                     "Before {doing}, look whether {thing} is {state}.",
                                     "{person} has a second pair of gloves in {place}, {reason}.",
                                     "Those who wait for {many} can sit in {place} and watch {person} at work.",
                                     "In {number} of ten cases {thing} needs nothing but a clean cloth."};

static_assert(std::size(sentences) >= most_paragraphs * most_sentences);

constexpr const char* notes[] = {"Check that {thing} is {state}.", "Bring {many} to {place}.", "Ask {person} about {doing}.",
                                 "Leave {place} as you found it.", "Put {thing} back {time}.", "Wait for {person}."};

constexpr const char* headings[] = {"{title}", "More about {lower}", "{title}: people and places", "A day at {lower}",
                                    "{title}, continued"};

const char* drawn_for(std::string_view slot, const subject& about, random_source& random) {
  if (slot == "person") return random.pick(about.people);
  if (slot == "place") return random.pick(about.places);
  if (slot == "thing") return random.pick(about.things);
  if (slot == "many") return random.pick(about.many);
  if (slot == "doing") return random.pick(about.doing);
  if (slot == "time") return random.pick(times);
  if (slot == "manner") return random.pick(manners);
  if (slot == "state") return random.pick(states);
  if (slot == "number") return random.pick(numerals);
  if (slot == "reason") return random.pick(reasons);
  return about.title;  // {title}, {lower}
}

/// Fills the slots, each with another word; the first letter becomes a capital.
std::string filled(const char* pattern, const subject& about, random_source& random) {
  std::string text;
  std::vector<std::string_view> used;
  while (const char* open = std::strchr(pattern, '{')) {
    const char* close = std::strchr(open, '}');
    const std::string_view slot(open + 1, static_cast<std::size_t>(close - open - 1));
    text.append(pattern, open);
    const std::size_t at = text.size();
    std::string_view word = drawn_for(slot, about, random);
    while (std::find(used.begin(), used.end(), word) != used.end()) word = drawn_for(slot, about, random);
    used.push_back(word);
    text += word;
    if (slot == "lower") text[at] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[at])));
    pattern = close + 1;
  }
  text += pattern;
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

/// Breaks between words, so that no line is longer than line_columns.
std::string wrapped(const std::string& text) {
  std::string out;
  std::size_t column = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    if (column > 0 && column + 1 + end - at > line_columns) {
      out += '\n';
      column = 0;
    } else if (column > 0) {
      out += ' ';
      ++column;
    }
    out.append(text, at, end - at);
    column += end - at;
    at = end + 1;
  }
  return out + '\n';
}

/// Sentences of the patterns that are left, which it takes away.
std::string paragraph(std::vector<const char*>& patterns, const subject& about, random_source& random) {
  std::string text;
  for (std::size_t left = 3 + random.below(most_sentences - 2); left > 0; --left) {
    text += (text.empty() ? "" : " ") + filled(patterns.back(), about, random);
    patterns.pop_back();
  }
  return wrapped(text);
}

std::string chapter(std::size_t number, random_source& random) {
  const subject& about = random.pick(subjects);
  std::string text = std::to_string(number) + ". " + filled(random.pick(headings), about, random) + "\n\n";
  std::vector<const char*> patterns(std::begin(sentences), std::end(sentences));
  random.shuffle(patterns);
  for (std::size_t left = 2 + random.below(most_paragraphs - 1); left > 0; --left) text += paragraph(patterns, about, random) + '\n';
  if (random.below(3) == 0) {
    for (std::size_t left = 2 + random.below(3); left > 0; --left) text += "- " + filled(random.pick(notes), about, random) + '\n';
    text += '\n';
  }
  return text;
}

}  // namespace

const std::string& prose() {
  static const std::string text = [] {
    random_source random(text_seed);
    std::string made;
    for (std::size_t number = 1; made.size() < text_bytes; ++number) made += chapter(number, random);
    made.resize(text_bytes);
    return made;
  }();
  return text;
}

}  // namespace minillama
