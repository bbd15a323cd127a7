"""Forms of one given name: spellings by ear of Irish and Welsh names, ways to write South Asian and Arabic ones, short
forms.

Only well-known equivalences, chosen by hand. A name may stand in several groups (Alex is short for Alexander and for
Alexandra), and being a form of one name is not passed on from group to group. Names are folded (``fold_name``).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

_IRISH: Final = """
siobhan shivaun chevonne
niamh neve nieve neeve
sean shaun shawn
aoife eefa
caoimhe keeva kiva queeva
saoirse seersha sersha
roisin rosheen
orla orlagh orlaith
oisin osheen
cillian killian kilian
padraig padraic patrick
conor connor
tadhg teague tadgh
eoin eoghan owen
ciaran kieran keiran
aine anya
maire mary
sinead shinade
grainne grania
eilis ailis ailish elish
seamus shamus james
diarmuid diarmaid dermot
meabh maeve medb
ruairi ruari rory ruaidhri
eamon eamonn edmond
fionn finn
fergal feargal
niall neil neal
una oonagh oona
brid bridget breda
donal donall
caitlin katelyn kaitlyn caitlyn
"""

_WELSH: Final = """
sian shan
rhys reece reese rees
gruffydd griffith gruff
owain owen
iwan ewan euan
dafydd david dai dewi
ieuan evan ifan
gwilym william
llywelyn llewellyn llewelyn lewellyn
catrin katrin
mair mary
cerys carys kerys
ffion fion
lowri lowry
steffan stefan stephen
tomos thomas
hywel howell
elin elen
megan meghan
"""

_SOUTH_ASIAN_AND_ARABIC: Final = """
mohammed mohamed mohammad mohamad muhammad muhammed muhamed maxamed mohd md
ahmed ahmad ahmet
hussain hussein husain
hassan hasan
yusuf yousuf yousef youssef yusef
ibrahim ebrahim
aisha ayesha aysha aishah aiesha ayisha
fatima fatimah fatema fathima
khadija khadijah khadeeja
zainab zaynab zaineb zeinab
maryam mariam marium
yasmin yasmeen yasmine
usman osman uthman
umar omar omer
bilal belal
hamza hamzah
abdullah abdallah abdulla
amina aminah ameena
noor nur nour
layla leila laila leyla
zahra zahrah zehra
imran emran
tariq tarek tareq
khalid khaled
rashid rasheed
saeed said saeid
syed sayed sayyid
karim kareem
shahid shaheed
iqra ikra
lakshmi laxmi
deepak dipak
deepa dipa
sunil suneel
pooja puja
arjun arjan
harjit harjeet
ranjit ranjeet
baljit baljeet
vikram bikram
geeta gita
meena mina
"""

_SHORT: Final = """
alexander alex xander sandy
alexandra alex sandra
elizabeth liz lizzie beth betty eliza libby elisabeth
katherine catherine kathryn katharine kate katie kathy cathy kath
william will bill billy liam
robert rob bob bobby robbie
richard rick ricky rich
james jim jimmy jamie
john jack johnny jon
jonathan jon jonny jonathon
margaret maggie meg peggy
thomas tom tommy
michael mike mick micky
matthew matt
daniel dan danny
benjamin ben
samuel sam sammy
samantha sam
joseph joe joey
joshua josh
nicholas nick nicky
nicola nicky
christopher chris
christine chris
christina chris tina
jennifer jen jenny
rebecca becky becca
victoria vicky tori
charlotte lottie charlie
charles charlie
edward ed eddie ted teddy ned
theodore theo ted teddy
frederick fred freddie
alfred alfie fred
isabella isabel isobel isabelle bella izzy
abigail abby abi
amelia millie
jacob jake
zachary zach zak zac
timothy tim
anthony antony tony
andrew andy drew
stephen steven steve
philip phillip phil
patrick pat paddy
patricia pat tricia
susan sue susie
deborah debbie
jacqueline jackie
eleanor ellie nell
ellen ellie nell
olivia liv livvy
oliver ollie olly
henry harry
harold harry
leonard len lenny leo
maximilian max
maxwell max
natasha tasha
nathaniel nathan nat
gabriel gabe
imogen immy
francesca fran frankie
frances fran
francis frank frankie
georgina georgie
georgia georgie
tobias toby
albert bert bertie
archibald archie
madeleine madeline maddie
penelope penny
philippa pippa
rosemary rosie
"""

GROUPS: Final = tuple(
    frozenset(line.split()) for line in (_IRISH + _WELSH + _SOUTH_ASIAN_AND_ARABIC + _SHORT).splitlines() if line
)
"""Each group holds forms of one name."""


def _index() -> dict[str, set[int]]:
    index: dict[str, set[int]] = defaultdict(set)
    for number, group in enumerate(GROUPS):
        for name in group:
            index[name].add(number)
    return dict(index)


_GROUPS_OF: Final = _index()


def are_forms_of_one_name(one: str, other: str) -> bool:
    """Whether two different folded given names are known forms of one."""
    return one != other and not _GROUPS_OF.get(one, set()).isdisjoint(_GROUPS_OF.get(other, set()))
