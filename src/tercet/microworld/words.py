"""English words and their French, German and Spanish translations (nouns without articles, masculine adjectives)."""

from __future__ import annotations

LANGUAGES = ("French", "German", "Spanish")

_TABLE = """
frog|grenouille|Frosch|rana
snake|serpent|Schlange|serpiente
dog|chien|Hund|perro
cat|chat|Katze|gato
cow|vache|Kuh|vaca
horse|cheval|Pferd|caballo
pig|cochon|Schwein|cerdo
sheep|mouton|Schaf|oveja
duck|canard|Ente|pato
hen|poule|Henne|gallina
bee|abeille|Biene|abeja
owl|hibou|Eule|búho
mouse|souris|Maus|ratón
fox|renard|Fuchs|zorro
bear|ours|Bär|oso
wolf|loup|Wolf|lobo
lion|lion|Löwe|león
monkey|singe|Affe|mono
goat|chèvre|Ziege|cabra
crow|corneille|Krähe|corneja
sea otter|loutre de mer|Seeotter|nutria marina
seal|phoque|Robbe|foca
cricket|grillon|Grille|grillo
parrot|perroquet|Papagei|loro
cheese|fromage|Käse|queso
bread|pain|Brot|pan
milk|lait|Milch|leche
apple|pomme|Apfel|manzana
egg|œuf|Ei|huevo
banana|banane|Banane|plátano
carrot|carotte|Karotte|zanahoria
tomato|tomate|Tomate|tomate
potato|pomme de terre|Kartoffel|patata
rice|riz|Reis|arroz
cake|gâteau|Kuchen|pastel
honey|miel|Honig|miel
soup|soupe|Suppe|sopa
lemon|citron|Zitrone|limón
pear|poire|Birne|pera
plum|prune|Pflaume|ciruela
red|rouge|rot|rojo
blue|bleu|blau|azul
green|vert|grün|verde
yellow|jaune|gelb|amarillo
black|noir|schwarz|negro
white|blanc|weiß|blanco
brown|brun|braun|marrón
grey|gris|grau|gris
ball|balle|Ball|pelota
book|livre|Buch|libro
cup|tasse|Tasse|taza
key|clé|Schlüssel|llave
hat|chapeau|Hut|sombrero
shoe|chaussure|Schuh|zapato
box|boîte|Kiste|caja
spoon|cuillère|Löffel|cuchara
bell|cloche|Glocke|campana
house|maison|Haus|casa
garden|jardin|Garten|jardín
forest|forêt|Wald|bosque
sea|mer|Meer|mar
school|école|Schule|escuela
water|eau|Wasser|agua
tree|arbre|Baum|árbol
sun|soleil|Sonne|sol
big|grand|groß|grande
small|petit|klein|pequeño
old|vieux|alt|viejo
"""


def _read(table: str) -> dict[str, dict[str, str]]:
    rows = (line.split("|") for line in table.split("\n") if line)
    return {english: dict(zip(LANGUAGES, others)) for english, *others in rows}


# WORDS["cheese"]["French"] == "fromage"
WORDS = _read(_TABLE)
