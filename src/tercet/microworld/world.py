"""The facts of the microworld; no seed changes them, so that a model can learn them and be tested on them.

The world is small and its English is regular on purpose: a model of a few million parameters that reads a million
tokens must be able to learn it. Animals have the article "the" ("The frog is green."), foods and things "a" or "an";
uncountable foods have no article ("Bread is brown.").
"""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey", "orange", "pink")
CONTAINERS = ("box", "bag", "basket", "drawer", "cupboard", "bucket", "car", "tent")

# Places that people go to and live near: all take the preposition "at".
VISITED = ("park", "school", "shop", "farm", "zoo", "beach", "library", "station")

# Places where animals live, with their prepositions ("in the pond").
HOMES = {"pond": "in", "farm": "on", "forest": "in", "house": "in", "garden": "in", "sea": "in", "mountain": "on"}
HOMES |= {"zoo": "in", "desert": "in", "jungle": "in"}

_UP_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TEENS = tuple(start + "teen" for start in ("thir", "four", "fif", "six", "seven", "eigh", "nine"))
NUMBER_WORDS = (*_UP_TO_TEN, "eleven", "twelve", *_TEENS, "twenty")


@dataclass(frozen=True, slots=True)
class Animal:
    """An animal and its five facts; no two animals have the same `sound`."""

    name: str
    colour: str
    legs: int
    home: str
    food: str
    sound: str


@dataclass(frozen=True, slots=True)
class Person:
    """A person and the five facts about them; `pronoun` is "She" or "He"."""

    name: str
    pronoun: str
    home: str
    job: str
    food: str
    colour: str
    pet: str


@dataclass(frozen=True, slots=True)
class Food:
    """A food; `plural` is empty if it cannot be counted ("bread")."""

    name: str
    plural: str
    colour: str
    taste: str


ANIMALS = (
    Animal("frog", "green", 4, "pond", "flies", "ribbit"),
    Animal("snake", "yellow", 0, "desert", "eggs", "hiss"),
    Animal("dog", "brown", 4, "house", "meat", "woof"),
    Animal("cat", "black", 4, "house", "fish", "meow"),
    Animal("cow", "white", 4, "farm", "grass", "moo"),
    Animal("horse", "brown", 4, "farm", "hay", "neigh"),
    Animal("pig", "pink", 4, "farm", "corn", "oink"),
    Animal("sheep", "white", 4, "mountain", "grass", "baa"),
    Animal("duck", "yellow", 2, "pond", "seeds", "quack"),
    Animal("hen", "red", 2, "farm", "corn", "cluck"),
    Animal("bee", "yellow", 6, "garden", "honey", "buzz"),
    Animal("owl", "brown", 2, "forest", "mice", "hoot"),
    Animal("mouse", "grey", 4, "house", "cheese", "squeak"),
    Animal("fox", "orange", 4, "forest", "eggs", "yip"),
    Animal("bear", "black", 4, "forest", "honey", "growl"),
    Animal("wolf", "grey", 4, "mountain", "meat", "howl"),
    Animal("lion", "yellow", 4, "zoo", "meat", "roar"),
    Animal("monkey", "brown", 2, "jungle", "bananas", "ooh"),
    Animal("goat", "white", 4, "mountain", "leaves", "maa"),
    Animal("crow", "black", 2, "garden", "seeds", "caw"),
    Animal("sea otter", "brown", 4, "sea", "fish", "squeal"),
    Animal("seal", "grey", 0, "sea", "fish", "arf"),
    Animal("cricket", "green", 6, "garden", "leaves", "chirp"),
    Animal("parrot", "red", 2, "jungle", "nuts", "squawk"),
)

PEOPLE = (
    Person("Anna", "She", "park", "baker", "bread", "red", "dog"),
    Person("Tom", "He", "school", "driver", "cheese", "blue", "cat"),
    Person("Mia", "She", "beach", "doctor", "cake", "green", "parrot"),
    Person("Ben", "He", "farm", "farmer", "corn", "brown", "horse"),
    Person("Lucy", "She", "shop", "teacher", "soup", "yellow", "mouse"),
    Person("Sam", "He", "zoo", "painter", "honey", "orange", "duck"),
    Person("Emma", "She", "library", "singer", "rice", "white", "goat"),
    Person("Leo", "He", "station", "cook", "milk", "black", "hen"),
    Person("Nina", "She", "farm", "painter", "rice", "blue", "hen"),
    Person("Jack", "He", "beach", "teacher", "bread", "yellow", "parrot"),
    Person("Rosa", "She", "station", "driver", "honey", "pink", "mouse"),
    Person("Paul", "He", "park", "doctor", "soup", "grey", "cat"),
    Person("Clara", "She", "school", "farmer", "milk", "orange", "goat"),
    Person("Oscar", "He", "library", "baker", "cheese", "red", "duck"),
    Person("Ida", "She", "zoo", "cook", "corn", "green", "dog"),
    Person("Hugo", "He", "shop", "singer", "cake", "black", "horse"),
)

FOODS = (
    Food("apple", "apples", "red", "sweet"),
    Food("banana", "bananas", "yellow", "sweet"),
    Food("carrot", "carrots", "orange", "sweet"),
    Food("tomato", "tomatoes", "red", "sour"),
    Food("lemon", "lemons", "yellow", "sour"),
    Food("pear", "pears", "green", "sweet"),
    Food("plum", "plums", "blue", "sour"),
    Food("egg", "eggs", "white", "mild"),
    Food("potato", "potatoes", "brown", "mild"),
    Food("bread", "", "brown", "mild"),
    Food("cheese", "", "yellow", "salty"),
    Food("milk", "", "white", "mild"),
    Food("rice", "", "white", "mild"),
    Food("cake", "", "pink", "sweet"),
    Food("honey", "", "yellow", "sweet"),
    Food("soup", "", "orange", "salty"),
    Food("corn", "", "yellow", "sweet"),
)

# What each thing is made of.
THINGS = {
    "ball": "rubber",
    "book": "paper",
    "cup": "glass",
    "key": "metal",
    "hat": "wool",
    "shoe": "leather",
    "bell": "metal",
    "spoon": "wood",
    "pen": "plastic",
    "coat": "wool",
    "kite": "paper",
    "drum": "wood",
    "ring": "gold",
    "coin": "silver",
    "lamp": "glass",
    "brush": "plastic",
}

PERSON = {person.name: person for person in PEOPLE}
FOOD = {food.name: food for food in FOODS}
# Nobody eats milk.
EATEN = tuple(food.name for food in FOODS if food.name != "milk")
COUNTED = tuple(food.name for food in FOODS if food.plural)


def article(noun: str) -> str:
    """Return `noun` with "a" or "an" ("an apple"); an uncountable food gets no article ("bread")."""
    if noun in FOOD and not FOOD[noun].plural:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    """Return `text` with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def number_forms(number: int) -> tuple[str, ...]:
    """Return the written forms of `number`: digits and, up to twenty, the word."""
    return (str(number), NUMBER_WORDS[number]) if number < len(NUMBER_WORDS) else (str(number),)
