"""Names that families in an English town carry, by culture, with the spellings that differ between systems.

A family name written ``Kowalski/Kowalska`` has a form for males and one for females.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Culture(NamedTuple):
    """Where a family's names come from."""

    families: tuple[str, ...]
    girls: tuple[str, ...]
    boys: tuple[str, ...]


def _culture(families: str, girls: str, boys: str) -> Culture:
    return Culture(tuple(families.split()), tuple(girls.split()), tuple(boys.split()))


CULTURES: Final = (
    _culture(
        "Smith Taylor Walker Hughes-Barton Wright Ashworth Pike Fletcher D'Arcy Sugden",
        "Olivia Amelia Isla Ava Freya Anne-Marie Poppy Charlotte Kayleigh Summer",
        "George Harry Oliver Noah Jack Alfie Thomas Jayden Tyler Leo",
    ),
    _culture(
        "O'Brien Murphy McGrath Ó_Súilleabháin Ní_Dhomhnaill Kavanagh Doherty",
        "Siobhán Niamh Aoife Caoimhe Saoirse Róisín Orla",
        "Oisín Cillian Seán Pádraig Conor Tadhg Eoin",
    ),
    _culture(
        "Llewellyn ap_Rhys Gruffydd Pritchard Bevan Lloyd-Jones",
        "Siân Nia Angharad Cerys Ffion Lowri",
        "Rhys Gethin Siôn Dafydd Owain Iwan",
    ),
    _culture(
        "Khan Ahmed Hussain Begum Malik Chowdhury ur-Rehman",
        "Aisha Fatima Zainab Maryam Khadija Ayesha",
        "Mohammed Muhammad Yusuf Ibrahim Hamza Bilal",
    ),
    _culture("Singh/Kaur Gill Sandhu Dhaliwal", "Simran Jasleen Harpreet Gurleen", "Arjan Harpreet Jaspal Karan"),
    _culture("Patel Shah Nair Iyer Subramanian", "Anaya Diya Lakshmi Meera", "Aarav Krishna Rohan Vivaan"),
    _culture(
        "Kowalski/Kowalska Wiśniewski/Wiśniewska Nowak Łukaszewicz Zieliński/Zielińska",
        "Zofia Małgorzata Hanna Oliwia",
        "Stanisław Jakub Łukasz Antoni",
    ),
    _culture("Okafor Adeyemi Okonkwo Mensah Nkrumah", "Chidinma Adaeze Ama Folake", "Chukwuemeka Tunde Kwame Ifeanyi"),
    _culture("Chen Wang Li Ng Cheung", "Mei Xiu-Ying Jia Hoi-Yan", "Wei Jun Ka-Ho Zhi-Ming"),
    _culture("Al-Sayed Haddad el-Masri Nasser", "Layla Noor Yasmin Hala", "Omar Karim Abd_al-Rahman Zaid"),
    _culture("Popescu Ionescu Dumitru Țurcan", "Ioana Ștefania Elena Mădălina", "Andrei Ștefan Ionuț Matei"),
    _culture("Abdi Warsame Farah Mohamud", "Hodan Ifrah Sahra Amina", "Abdirahman Liban Guled Yahye"),
    _culture("Yılmaz Demir Şahin Öztürk", "Elif Zeynep Ayşe Gül", "Emre Çağlar Mehmet Burak"),
    _culture("Campbell Clarke Grant Bailey-Reid", "Shanice Tianna Imani Keisha", "Tyrese Jermaine Malachi Dwayne"),
)

RESPELT: Final = {
    "Mohammed": "Muhammad",
    "Muhammad": "Mohamed",
    "Aisha": "Ayesha",
    "Ayesha": "Aisha",
    "Siobhán": "Siobhan",
    "Seán": "Shaun",
    "Niamh": "Neve",
    "Siân": "Sian",
    "Łukasz": "Lukasz",
    "Zofia": "Sophia",
}
"""The same name as another system spells it."""


def write_name(word: str, *, female: bool) -> str:
    """The name as its bearer writes it: the form for her or him, and spaces where the table has underscores."""
    forms = word.replace("_", " ").split("/")
    return forms[-1] if female else forms[0]
